"""Video in, segmented video out: frame by frame, in bounded memory."""
