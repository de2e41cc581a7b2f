"""First ranges of activations, from data."""
