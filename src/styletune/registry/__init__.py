"""Versioned adapters: content-addressed blobs, one manifest a version, numbered events."""
