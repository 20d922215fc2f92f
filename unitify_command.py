"""The console script ``unitify``. Its help is there at once: it does not wait for torch."""

import os
import sys

#: Does the script run? Then its commands register the operators of emitted graphs when they start,
#: not the package as it is imported.
RUNS = False


def main() -> None:
    """Run the command line."""
    global RUNS
    RUNS = True
    _take_stdout()
    from unitify.cli import app

    app()


def _take_stdout() -> None:
    """Keep the standard output for results. What compiled code prints goes to the standard error.

    Solvers and libraries print to the file descriptor, past ``sys.stdout``.
    """
    try:
        if sys.stdout.fileno() != 1:
            return
        results = os.fdopen(os.dup(1), "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors)
        os.dup2(2, 1)
    except (AttributeError, OSError, ValueError):
        return  # One of them is closed, or is no file.
    sys.stdout = results
