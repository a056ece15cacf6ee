"""`verify`: check that a result or a store is whole."""
