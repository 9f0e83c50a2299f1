"""Pixels: decoding, buckets and crops, fingerprints."""
