"""Whether the device computes what the model predicts: compare."""
