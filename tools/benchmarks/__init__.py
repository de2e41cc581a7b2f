"""What `tools/benchmark` runs: contestants in processes of their own, timed in turns."""
