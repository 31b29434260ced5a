"""Evaluation: one confusion matrix and what is read off it."""
