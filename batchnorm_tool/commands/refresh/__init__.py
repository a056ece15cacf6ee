"""`refresh`: keep a store of vectors up to date, behind a gate."""
