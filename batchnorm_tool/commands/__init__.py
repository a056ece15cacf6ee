"""What the commands do: one file or one package for each."""
