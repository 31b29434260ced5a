"""Prediction: images of any size in, class ids out."""
