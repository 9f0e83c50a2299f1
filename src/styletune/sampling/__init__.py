"""Adapter and prompts -> images that carry their settings."""
