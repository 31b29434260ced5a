"""Data sets: reading, checking, augmenting."""
