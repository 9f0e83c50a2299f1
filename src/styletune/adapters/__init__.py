"""Adapters: injected into a base, in files, as updates, in every layout, exported."""
