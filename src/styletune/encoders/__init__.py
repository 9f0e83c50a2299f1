"""Images and texts -> features."""
