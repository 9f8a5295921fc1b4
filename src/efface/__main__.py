"""Run the command line as ``python -m efface``."""

from efface.app.cli import main

main()
