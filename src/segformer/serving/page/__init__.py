"""The page of the service: images in a browser, segmented through the same queue as requests."""
