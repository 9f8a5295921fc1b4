"""The doors: command line, page, reports."""
