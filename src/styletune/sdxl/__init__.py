"""What is particular to SDXL: loading, conditioning, latents, adapters and file layouts."""
