"""What attacks share that prune."""
