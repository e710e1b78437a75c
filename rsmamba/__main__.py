"""``python -m rsmamba``: the command line without its script."""

from rsmamba.cli.main import main

main()
