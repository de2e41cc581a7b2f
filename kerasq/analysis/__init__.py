"""What a quantized model costs, and where it loses accuracy."""
