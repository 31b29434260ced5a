"""Known data set layouts: recognized by their folders and files, read as released."""
