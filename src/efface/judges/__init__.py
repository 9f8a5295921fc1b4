"""Methods that score."""
