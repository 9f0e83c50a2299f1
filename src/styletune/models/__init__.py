"""Base models: their files, loading, quantization, conditioning, latents and noise schedule."""
