"""The public verbs: one file for each."""
