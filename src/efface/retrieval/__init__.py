"""Methods that search."""
