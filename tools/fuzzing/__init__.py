"""Random programs and damaged files for tools/fuzz.py."""
