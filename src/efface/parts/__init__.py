"""Everything that two methods share, as plain functions and modules."""
