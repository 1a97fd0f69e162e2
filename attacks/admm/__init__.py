"""What the attacks by ADMM share: projections, how much each layer keeps, the iterations, snapping to levels."""
