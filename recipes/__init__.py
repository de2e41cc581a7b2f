"""Scripts people run and copy, and the data, model and training helpers they share."""
