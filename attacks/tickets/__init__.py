"""What attacks on pruned models share."""
