"""Tools for those who work on kerasq."""
