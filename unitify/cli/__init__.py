"""The command line ``unitify COMMAND``, with one file for each command.

Every failure that a user can cause is one line with a code on stderr, and exit status 2. Tables go
to stdout, and progress to stderr if that is a terminal. ``NO_COLOR`` is honored.
"""

from unitify.cli import check, convert, explain, export, generate, report, rules
from unitify.cli.application import app

__all__ = ["app", "check", "convert", "explain", "export", "generate", "report", "rules"]
