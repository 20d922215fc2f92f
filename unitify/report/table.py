"""A ``Report`` as a terminal shows it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from unitify.diagnostics import EstimateFellBack, NoRule, first_of
from unitify.recipe.choices import TAKEN, Choice, flop_share
from unitify.report.report import Report, Share, apart

_SHOWN = 4


def report_table(report: Report) -> Table:
    """Two columns: a name, and its number."""
    table = Table(title=f"unitify · {report.model}", title_justify="left", show_header=False)
    table.add_column("what", style="bold", no_wrap=True)
    table.add_column("figure", overflow="fold")
    table.add_row("parameters", f"{report.parameters:,}")
    table.add_row("values", f"{report.values:,} (from {report.operations:,} operations)")
    table.add_row("rescales inserted", f"{report.rescales:,}")
    table.add_row("scales", report.scales)
    table.add_row("values at unit RMS", _share(report.forward))
    table.add_row("gradients at unit RMS", _share(report.backward))
    table.add_row("restored without a rule", _counted(report.restored))
    table.add_row("not predicted by a rule", _counted(report.fell_back))
    table.add_row("left out", _left_out(report))
    table.add_row("recipe", _recipe(report))
    table.add_row("exact before casts", verdict(report))
    table.add_row("seconds", _seconds(report))
    return table


def verdict(report: Report) -> Text:
    """Was the result verified to be the same function, before any cast?"""
    if report.exact is None:
        return Text("not verified", style="yellow")
    if report.rounding and not report.differences:
        largest = report.rounding[0]
        return Text(
            f"but for rounding in {len(report.rounding)} of {report.compared} results: {largest}",
            style="yellow",
        )
    if not report.exact:
        first = f": {report.differences[0]}" if report.differences else ""
        return Text(f"NO{first}", style="red")
    return Text(f"yes: {report.compared} results bitwise those of the model", style="green")


def _share(share: Share) -> str:
    if not share.total:
        return "none"
    before, after = (100 * n / share.total for n in (share.before, share.after))
    return f"{before:.1f} % before, {after:.1f} % after (of {share.total:,}{apart(share.weights)})"


def _counted(found: Sequence[NoRule | EstimateFellBack]) -> str:
    if not found:
        return "none"
    return first_of([f"{d.operation} × {d.count}" for d in found], _SHOWN)


def _left_out(report: Report) -> str:
    return "\n".join(f"{d.code} {d.message}" for d in report.left_out) or "nothing"


def _recipe(report: Report) -> str:
    if report.recipe is None:
        return "none"
    return "\n".join([report.recipe, *_shares(report), *_reasons(report.casts)])


def _shares(report: Report) -> list[str]:
    shares = {name: f"{100 * share:.1f} %" for name, share in report.flop_shares().items()}
    if not shares or not flop_share(report.casts):
        return []
    return [
        f"{shares['weights']} of linear FLOPs on eight bits ({shares['contractions']} of all "
        f"contractions); {shares['weights_on_fp8']} multiplied so"
    ]


def _reasons(casts: tuple[Choice, ...]) -> list[str]:
    """One line for each reason: cast or kept, and which values."""
    groups: dict[tuple[str, str], list[str]] = {}
    for choice in casts:
        kind = f"cast to {choice.forward}/{choice.backward}" if choice.is_cast else "kept"
        kind = "" if choice.reason == TAKEN else kind
        why = f"{choice.reason}; simulated: {choice.runs_because}" if choice.runs_because else ""
        groups.setdefault((kind, why or choice.reason), []).append(choice.value)
    lines = []
    for (kind, reason), values in sorted(groups.items(), key=lambda item: item[0][0] == "kept"):
        what = f"{kind} ({reason})" if kind else reason
        lines.append(f"{what}: {first_of(values, _SHOWN)}")
    return lines


def _seconds(report: Report) -> str:
    return ", ".join(f"{stage} {time:.1f}" for stage, time in report.seconds.items())
