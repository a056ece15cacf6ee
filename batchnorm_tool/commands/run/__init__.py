"""`run` and `score`: feed a table through a model and write what it predicts."""
