"""What forgeries share: what schemes offer them, and inputs fitted to models."""
