"""The network: encoder, decoder and complete models."""
