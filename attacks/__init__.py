"""The attacks: one file per family, found without registration."""
