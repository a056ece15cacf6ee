"""`compare` and `diff`: what two sets of vectors have in common."""
