"""Methods that take something out of pictures."""
