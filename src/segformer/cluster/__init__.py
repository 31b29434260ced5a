"""Prediction on many machines."""
