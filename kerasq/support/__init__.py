"""What has nothing to do with quantization: files, tables, progress bars, batches of data."""
