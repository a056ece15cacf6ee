"""The store that a refresh keeps: a Lance dataset, and what lies beside it."""
