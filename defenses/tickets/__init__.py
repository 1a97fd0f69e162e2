"""What marks in lottery tickets share: rounds of pruning, scores of kernels, masks as patterns."""
