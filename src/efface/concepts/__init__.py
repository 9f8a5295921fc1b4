"""Methods that take concepts out of generators."""
