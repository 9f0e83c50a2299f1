"""The page about a set of images."""
