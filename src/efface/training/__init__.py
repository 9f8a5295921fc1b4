"""One training loop, over accelerate."""
