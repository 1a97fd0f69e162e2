"""The skeletons that `ownbench new` writes."""
