"""Float models whose channels and biases lie better on grids, and that compute the same."""
