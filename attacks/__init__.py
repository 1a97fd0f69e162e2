"""The attacks: a family a file, found without registration; what several share lies in a folder."""
