"""Curated images: opened, decoded to upright sRGB, checked, grouped, split, fingerprinted."""
