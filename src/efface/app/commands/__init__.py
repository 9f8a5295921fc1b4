"""One file per command: its options, and how its results are printed."""
