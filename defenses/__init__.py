"""The defenses: a scheme family a file, found without registration; what a family shares lies in its folder."""
