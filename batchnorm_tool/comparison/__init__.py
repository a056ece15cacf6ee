"""What a comparison of norms computes: NumPy alone, without files and without Arrow."""
