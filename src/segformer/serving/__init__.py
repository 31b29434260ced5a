"""Segmentation over HTTP, for programs and for annotation tools."""
