"""What the attacks share that make a new model from answers."""
