"""The commands of `ownbench`, each of which puts the other packages together."""
