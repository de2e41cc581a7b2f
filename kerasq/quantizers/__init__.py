"""How activations and weights are put onto grids, and how their ranges are trained."""
