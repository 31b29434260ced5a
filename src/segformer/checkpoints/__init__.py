"""Models on disk, whatever wrote them."""
