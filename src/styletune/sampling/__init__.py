"""A base, an adapter and shots -> images that carry their settings."""
