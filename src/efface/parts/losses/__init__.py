"""Losses that more than one method trains with."""
