"""Data sets of georeferenced scenes with labels as polygons or rasters, read tile by tile."""
