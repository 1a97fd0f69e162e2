"""What forgeries of passports share."""
