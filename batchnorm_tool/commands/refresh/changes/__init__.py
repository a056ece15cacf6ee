"""What changed in the input since the live version."""
