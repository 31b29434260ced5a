"""Reports as one HTML file each, which needs no network and no other file."""
