"""Many input files as one table: open it, and read any rows of it."""
