"""The terminal output of every command: errors on one line each, and progress bars."""

from __future__ import annotations

import contextlib
import logging
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextvars import ContextVar

import typer

from unitify.diagnostics import UnitifyError

#: Does ``unitify --traceback`` run?
SHOWS_TRACEBACK: ContextVar[bool] = ContextVar("SHOWS_TRACEBACK", default=False)


@contextlib.contextmanager
def reported() -> Iterator[None]:
    """A context that prints a ``UnitifyError`` as one line a diagnostic, with exit status 2.

    What a model prints goes to stderr: stdout is for results, which come afterwards.
    ``unitify --traceback`` prints the traceback first. Any other exception is a bug of ours, and
    has a traceback, too.
    """
    from rich.console import Console

    import unitify.runtime  # noqa: F401  (registers the operators of emitted graphs)

    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        # Hide warnings of torch and transformers. Ours are in the report.
        warnings.simplefilter("ignore")
        disabled = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        try:
            yield
        except UnitifyError as error:
            if SHOWS_TRACEBACK.get():
                traceback.print_exception(error)
            console = Console(stderr=True, emoji=False)
            for diagnostic in error.diagnostics:
                line = f"error: {diagnostic}"
                console.print(line, style="red", markup=False, highlight=False, soft_wrap=True)
            raise typer.Exit(2) from None
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except Exception as error:
            traceback.print_exception(error)
            typer.echo("error: a bug of unitify; please report it with these lines", err=True)
            raise typer.Exit(2) from None
        finally:
            logging.disable(disabled)


@contextlib.contextmanager
def progress_bar(names: tuple[str, ...]) -> Iterator[Callable[[str], None]]:
    """A transient bar over the stages. Yields a function to call at the end of each stage."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True, emoji=False)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task(names[0], total=len(names))

        def advance(stage: str) -> None:
            following = names[names.index(stage) + 1 :] if stage in names else (stage,)
            progress.update(task, advance=1, description=following[0] if following else stage)

        yield advance


@contextlib.contextmanager
def bytes_bar() -> Iterator[Callable[[int], Callable[[int], None]]]:
    """A bar over bytes, with the remaining time. Yields a function that takes the total number."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = Console(stderr=True, emoji=False)
    columns = (
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), DownloadColumn(),
        TransferSpeedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task("plan", total=None)

        def start(total: int) -> Callable[[int], None]:
            progress.update(task, description="write", total=total)
            return lambda count: progress.advance(task, count)

        yield start
