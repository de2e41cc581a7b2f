"""Post-training methods: what makes a calibrated model better without training it."""
