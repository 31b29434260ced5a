"""Georeferenced scenes of any size: segmented window by window, within a memory limit."""
