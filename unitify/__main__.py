"""``python -m unitify``: the command line."""

from unitify_command import main

main()
