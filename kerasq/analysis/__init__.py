"""What a quantized model costs, where it loses accuracy, and whether the device agrees."""
