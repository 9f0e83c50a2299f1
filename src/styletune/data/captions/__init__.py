"""Captions: checks, fixes, a model that writes them, variants for training."""
