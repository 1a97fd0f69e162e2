"""What attacks share that quantize."""
