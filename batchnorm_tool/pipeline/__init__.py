"""How a part of the input becomes a part of the output."""
