"""U2: rules and estimates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from unitify.diagnostics.diagnostic import Diagnostic


@dataclass(frozen=True)
class RuleInvalid(Diagnostic):
    """A rule file holds something that is not a rule.

    Example: ``law = { out = "input +* weight" }``.
    Fix: see ``docs/design.md`` for the grammar.
    """

    code: ClassVar[str] = "U201"
    why: ClassVar[str] = "{operation}: {problem}"
    fix: ClassVar[str] = "Mend the row; docs/design.md describes the grammar"
    operation: str
    problem: str


@dataclass(frozen=True)
class NoRule(Diagnostic):
    """An operation has no rule: it runs at true scale (restored), which is always right.

    Its operands are brought back to their true values, so they may be far from unit scale.

    Example: an operation of your own, registered with torch's ``custom_op``.
    Fix: nothing has to be mended; to keep its operands at unit scale add a rule file:
    ``transform(model, rules=["my_rules.toml"])``.
    """

    code: ClassVar[str] = "U202"
    why: ClassVar[str] = "{operation} has no rule and was restored to true scale ({count} nodes)"
    fix: ClassVar[str] = "Exact as it is; add a rule to keep its operands at unit scale"
    operation: str
    count: int


@dataclass(frozen=True)
class UnknownValue(Diagnostic):
    """No value of the graph has the name that was asked for.

    Example: ``unitify explain liner --model my_package:build``.
    Fix: use one of the names of ``unitify.estimate(model)``.
    """

    code: ClassVar[str] = "U203"
    why: ClassVar[str] = "there is no value {name!r} in the graph"
    fix: ClassVar[str] = "Close names: {close}"
    name: str
    close: str


@dataclass(frozen=True)
class NotFinite(Diagnostic):
    """A tensor holds NaN or infinity where a scale was to be taken from it.

    Example: a checkpoint saved after a training run had diverged.
    Fix: find out where it comes from; the checkpoint may be damaged.
    """

    code: ClassVar[str] = "U204"
    why: ClassVar[str] = "{name} holds {count} non-finite values"
    fix: ClassVar[str] = "Check the weights or the inputs that lead to it"
    name: str
    count: int
