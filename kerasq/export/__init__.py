"""From a quantized Keras model to an integer-only .tflite: convert, then lower."""
