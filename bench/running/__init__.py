"""What runs when, and what one job does; nothing of Ray is known here."""
