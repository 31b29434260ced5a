"""Prediction: pictures of any size in, class ids out."""
