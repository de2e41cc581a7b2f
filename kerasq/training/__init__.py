"""What fine-tuning takes beside `fit`: callbacks, distillation, several workers."""
