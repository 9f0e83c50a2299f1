"""Adapters: injected into a base, in files, as weight updates, in other tools' layouts."""
