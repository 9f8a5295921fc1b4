"""Methods that sample from and tune generators."""
