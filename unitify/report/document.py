"""``Numerics`` as plain data: the JSON file of a report, and the data of its page.

docs/report.md describes the layout, which changes only with ``SCHEMA``. Numbers have five digits.
JSON has no NaN and no infinity; both are null.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from unitify.check.finding import Finding
from unitify.drift.monitor import Record
from unitify.formats.magnitudes import Magnitudes
from unitify.formats.table import FORMATS
from unitify.recipe.choices import TAKEN, Choice, flop_share
from unitify.report.numerics import (
    DIRECTIONS,
    GRAPHS,
    Checked,
    Numerics,
    Side,
    Value,
)
from unitify.report.origins import shown
from unitify.version import __version__

#: The kind of the file, and the version of its layout.
KIND, SCHEMA = "unitify-report", 1


def document(numerics: Numerics) -> dict[str, Any]:
    """All data of a report, for ``json.dumps``."""
    sources = _Sources()
    return {
        "kind": KIND,
        "schema": SCHEMA,
        "versions": {**numerics.versions, "unitify": __version__},
        "model": numerics.model,
        "target": numerics.target,
        "scales": numerics.scales,
        "recipe": {
            "name": numerics.recipe.name,
            "forward": numerics.recipe.forward.name,
            "backward": numerics.recipe.backward.name,
            "values": numerics.recipe.values,
            "table": numerics.recipe.as_table(),
        },
        "recipe_is_applied": numerics.is_applied,
        "placement": numerics.placement,
        "carrier": numerics.carrier,
        "batches": numerics.batches,
        "exact_before_casts": numerics.exact,
        "parameters": numerics.parameters,
        "formats": {name: _format(name) for name in numerics.formats},
        "unit": {
            direction: {graph: list(numerics.unit_share(direction, graph)) for graph in GRAPHS}
            for direction in DIRECTIONS
        },
        "true_weights": {d: numerics.true_weights(d) for d in DIRECTIONS},
        "cast_share_of_flops": _number(flop_share(numerics.choices)),
        "values": [_value(value, sources) for value in numerics.values],
        "choices": [_choice(choice) for choice in numerics.choices],
        "sources": sources.found,
        "rules": {
            name: {
                "kind": rule.kind,
                "file": rule.file,
                "law": rule.law or None,
                "forward": list(rule.forward),
                "backward": list(rule.backward),
                "source": rule.source,
            }
            for name, rule in numerics.rules.items()
        },
        "classes": [
            {"values": list(c.values), "forward": c.forward, "backward": c.backward}
            for c in numerics.classes
        ],
        "rescales": [
            [c.source, c.target, c.forward, c.backward, c.uses] for c in numerics.crossings
        ],
        "findings": [d.as_json() for d in numerics.findings],
        "notes": list(numerics.notes),
        "check": {graph: _checked(held) for graph, held in numerics.checked.items()},
        "drift": _drift(numerics.drift),
    }


def dumps(numerics: Numerics) -> str:
    """The document as compact JSON, one value a line."""
    held = document(numerics)
    rows = ",\n".join(json.dumps(value, separators=(",", ":")) for value in held["values"])
    text = json.dumps({**held, "values": []}, separators=(",", ":"))
    return text.replace('"values":[]', f'"values":[\n{rows}\n]', 1) + "\n"


class _Sources:
    """Source lines, each once, by number."""

    def __init__(self) -> None:
        self.found: list[dict[str, Any]] = []
        self.index: dict[tuple[str, int], int] = {}

    def number(self, value: Value) -> int | None:
        origin = value.origin
        if not origin.file:
            return None
        key = origin.file, origin.line
        if key not in self.index:
            self.index[key] = len(self.found)
            self.found.append(
                {
                    "file": origin.file,
                    "shown": origin.shown,
                    "line": origin.line,
                    "first": origin.first,
                    "excerpt": list(origin.excerpt),
                }
            )
        return self.index[key]


def _value(value: Value, sources: _Sources) -> dict[str, Any]:
    return {
        "name": value.name,
        "kind": value.kind,
        "is_true_weight": value.is_true_weight,
        "operation": value.operation,
        "shape": list(value.shape),
        "module": value.origin.module,
        "class": value.origin.kind,
        "parameter": value.parameter or None,
        "source": sources.number(value),
        "restored": value.restored or None,
        "forward": _side(value.forward),
        "backward": _side(value.backward),
        "sqnr": _numbers(value.sqnr) if value.sqnr else None,
        "contraction": value.contraction or None,
    }


def _side(side: Side) -> dict[str, Any]:
    return {
        "predicted": _number(side.predicted),
        "measured": _number(side.measured),
        "exponent": side.exponent,
        "cast": side.cast or None,
        "octaves": None if side.magnitudes is None else _octaves(side.magnitudes),
        "losses": {
            graph: {
                name: [_number(x, 3) for x in (loss.flushed, loss.subnormal, loss.saturated)]
                for name, loss in held.items()
            }
            for graph, held in side.losses.items()
        },
        "steps": [[step.way, _number(step.rms), _numbers(step.inputs)] for step in side.steps],
        "is_rounding": side.is_rounding,
    }


def _checked(held: Checked) -> dict[str, Any]:
    """Findings, and by the line where they begin: [indexes, number of those that follow]."""
    index = {id(finding): at for at, finding in enumerate(held.outcome.findings)}
    return {
        "judged": len(held.outcome.cases),
        "judged_by": held.outcome.judged_by,
        "counts": held.outcome.counts,
        "notes": list(held.outcome.notes),
        "findings": [_finding(finding, held) for finding in held.outcome.findings],
        "starts": [[[index[id(f)] for f in s.findings], s.followers] for s in held.starts],
    }


def _finding(finding: Finding, held: Checked) -> dict[str, Any]:
    source = finding.source
    return {
        "code": finding.code,
        "severity": finding.severity,
        "name": finding.name,
        "value": held.values.get(finding.name),
        "direction": finding.direction or None,
        "why": finding.diagnostic.message,
        "fix": finding.fix,
        "file": shown(source.file) or None,
        "line": source.line,
        "source": source.text,
        "cause": finding.cause or None,
    }


def _octaves(magnitudes: Magnitudes) -> dict[str, Any]:
    elements = magnitudes.total + magnitudes.zeros + magnitudes.special
    return {
        "first": magnitudes.first,
        "shares": [_number(share, 3) for share in magnitudes.octaves()],
        "zeros": _number(magnitudes.zeros / elements if elements else 0.0, 3),
        "special": int(magnitudes.special),
    }


def _choice(choice: Choice) -> dict[str, Any]:
    return {
        "value": choice.value,
        "operation": choice.operation,
        "forward": choice.forward or None,
        "backward": choice.backward or None,
        "reason": choice.reason,
        "is_operand": choice.reason == TAKEN,
        "is_contraction": choice.is_contraction,
        "flops": choice.flops,
        "runs": choice.runs or None,
        "runs_because": choice.runs_because or None,
    }


def _format(name: str) -> dict[str, Any]:
    format = FORMATS[name]
    return {
        "bits": format.bits,
        "largest": format.largest,
        "smallest_normal": format.smallest_normal,
        "smallest_subnormal": format.smallest_subnormal,
    }


def _drift(records: Iterable[Record]) -> dict[str, Any] | None:
    """Readings by value, one number for each record: null where it is missing or zero."""
    records = tuple(records)
    if not records:
        return None
    return {
        "steps": [r.step for r in records],
        "outside": [_number(r.outside) for r in records],
        **{
            kind: {direction: _series(records, kind, direction) for direction in DIRECTIONS}
            for kind in ("rms", "underflow", "saturation")
        },
    }


def _series(
    records: tuple[Record, ...], kind: str, direction: str
) -> dict[str, list[float | None]]:
    held = [
        {name: getattr(reading, kind) for name, reading in getattr(record, direction).items()}
        for record in records
    ]
    names = {name: None for readings in held for name, n in readings.items() if n is not None}
    return {name: [_number(readings.get(name), 4) for readings in held] for name in names}


def _numbers(held: Mapping[str, float | None]) -> dict[str, float | None]:
    return {name: _number(number) for name, number in held.items()}


def _number(number: float | None, digits: int = 5) -> float | None:
    if number is None or not math.isfinite(number):
        return None
    rounded = float(f"{number:.{digits}g}")
    return int(rounded) if rounded == int(rounded) and abs(rounded) < 1e6 else rounded
