"""Norms of vectors, and statistics of norms and of vectors."""
