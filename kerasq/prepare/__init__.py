"""Passes from a Keras model to an equal Keras model that quantizes well."""
