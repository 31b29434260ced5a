"""The network: encoder, decoder and the table of B0..B5."""
