"""The Python API: one verb a file."""
