"""The command line: ``unitify COMMAND``, a file each.

Every failure that a user can cause is one coded line on stderr and exit status 2. Tables go to
stdout, progress to stderr where that is a terminal; ``NO_COLOR`` is honored.
"""

from unitify.cli import check, convert, explain, export, generate, report, rules
from unitify.cli.application import app

__all__ = ["app", "check", "convert", "explain", "export", "generate", "main", "report", "rules"]


def main() -> None:
    """The console script ``unitify``."""
    app()
