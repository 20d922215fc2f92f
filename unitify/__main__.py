"""``python -m unitify``: the command line."""

from unitify.cli import main

main()
