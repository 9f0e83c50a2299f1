"""Curated images: opened, oriented, brought to sRGB, checked, grouped, split, fingerprinted."""
