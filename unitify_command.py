"""The console script ``unitify``. Its help is there at once: it does not wait for torch."""

#: Does the script run? Then its commands register the operators of emitted graphs when they start,
#: not the package as it is imported.
RUNS = False


def main() -> None:
    """Run the command line."""
    global RUNS
    RUNS = True
    from unitify.cli import app

    app()
