"""Evidence: one file per method, run by `efface check`."""
