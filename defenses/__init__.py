"""The defenses: one file per scheme family, found without registration."""
