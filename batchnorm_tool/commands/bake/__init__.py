"""The normalization inside the model: a copy of a model with it in its graph."""
