"""styletune: a brand's visual style as a versioned, measured, rights-aware SDXL LoRA."""

__all__ = ["__version__"]

__version__ = "0.1.0"
