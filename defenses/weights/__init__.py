"""What marks in weights share: keyed positions and the constant-weight code."""
