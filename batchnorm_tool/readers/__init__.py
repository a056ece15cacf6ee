"""Vectors that are stored: in a run, in a store's version, in files, in an array."""
