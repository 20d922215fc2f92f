"""The application with which the commands register, and its own options."""

from __future__ import annotations

from typing import Annotated

import typer

from unitify.cli.terminal import SHOWS_TRACEBACK
from unitify.version import __version__

app = typer.Typer(
    help="Store every tensor of a PyTorch model near unit scale, exactly.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"unitify {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", is_eager=True, callback=_print_version
        ),
    ] = False,
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Show the traceback of an error.")
    ] = False,
) -> None:
    """The options of ``unitify`` itself."""
    SHOWS_TRACEBACK.set(traceback)
