"""A new brand's folder, ready to fill."""
