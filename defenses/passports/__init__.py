"""What passports share: layers, branches, their training, keys and evidence."""
