"""Evaluation: scores of a model on a labeled data set."""
