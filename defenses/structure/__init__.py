"""What marks in the structure share: cells of pruning rates, and a code over layers."""
