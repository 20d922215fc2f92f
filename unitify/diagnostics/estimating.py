"""U2: rules and estimates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from unitify.diagnostics.diagnostic import Diagnostic


@dataclass(frozen=True)
class RuleInvalid(Diagnostic):
    """A rule file holds something that is not a rule, or that would do nothing.

    Rows are checked when they are loaded: keys, functions, and every name against the arguments of
    the operation. Two names of one row that are easy to confuse are refused, too.

    Example: ``law = { out = "input +* weight" }``; ``elementwise = "sefl"``.
    Fix: see ``docs/design.md`` for the grammar.
    """

    code: ClassVar[str] = "U201"
    why: ClassVar[str] = "{operation}: {problem}"
    fix: ClassVar[str] = "Correct the row; docs/design.md describes the grammar"
    operation: str
    problem: str


@dataclass(frozen=True)
class NoRule(Diagnostic):
    """An operation has no rule. It is restored: it runs on true values, which is always right.

    Its operands may then be far from unit scale.

    Example: an operation of your own, registered with torch's ``custom_op``.
    Fix: nothing has to be fixed; to keep its operands at unit scale add a rule file:
    ``transform(model, rules=["my_rules.toml"])``.
    """

    code: ClassVar[str] = "U202"
    why: ClassVar[str] = "{operation} has no rule and was restored to true scale ({count} nodes)"
    fix: ClassVar[str] = "Exact as it is; add a rule to keep its operands at unit scale"
    operation: str
    count: int


@dataclass(frozen=True)
class UnknownValue(Diagnostic):
    """No value of the graph has the given name.

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


@dataclass(frozen=True)
class OperationUnknown(Diagnostic):
    """A rule file has a row for an operation that torch does not know.

    torch knows an operator once the module that registers it is imported, and a Python function
    once its own module is.

    Example: ``["aten.sinhh.default"]``; ``["mylib.softclip.default"]`` before ``import mylib``.
    Fix: correct the name, or import the library: ``unitify rules verify FILE --import mylib``.
    """

    code: ClassVar[str] = "U205"
    why: ClassVar[str] = "torch has no operation {operation}{hint}"
    fix: ClassVar[str] = "Correct the name, or import the module that registers it (--import)"
    operation: str
    hint: str = ""


@dataclass(frozen=True)
class EstimateFellBack(Diagnostic):
    """Moments could not be predicted as the operation's row says.

    They were sampled instead. Where the operation does not run on samples either, the RMS of its
    first operand was assumed. A wrong estimate costs precision, never exactness.

    Example: a row that averages over a dimension which the operand does not have.
    Fix: nothing has to be fixed; scales that are measured need no prediction. A row of your own
    can be tried with ``unitify rules verify FILE``.
    """

    code: ClassVar[str] = "U206"
    why: ClassVar[str] = (
        "{direction} moments of {operation} were {way}, not predicted ({count} nodes): {reason}"
    )
    fix: ClassVar[str] = "Exact as it is; measured scales need no prediction"
    operation: str
    direction: str
    way: str
    count: int
    reason: str


@dataclass(frozen=True)
class ImportFailed(Diagnostic):
    """A module that ``--import`` names cannot be imported.

    Example: ``unitify rules verify mine.toml --import mylibb``.
    Fix: name a module of the working folder or of an installed package, as ``import`` does.
    """

    code: ClassVar[str] = "U207"
    why: ClassVar[str] = "importing {module} failed with {problem}"
    fix: ClassVar[str] = "Name a module that python can import from here"
    module: str
    problem: str


@dataclass(frozen=True)
class RunNotFinite(Diagnostic):
    """Values were infinite or NaN in the run that measures scales.

    Their scales are predicted. Values of masks do not count.

    Example: a model that takes the logarithm of its input, which was drawn or may be negative.
    Fix: pass example inputs of the range that the model takes, or ``batches=``.
    """

    code: ClassVar[str] = "U208"
    why: ClassVar[str] = (
        "{count} values ({names}) were not finite in the run; their scales are predicted"
    )
    fix: ClassVar[str] = "Exact as it is; pass example inputs that the model takes"
    count: int
    names: str


@dataclass(frozen=True)
class ZeroParameters(Diagnostic):
    """Parameters are zero, or gains next to zero, so a run tells nothing of scales behind them.

    A second run takes random numbers in their place, as large as a first step of Adam at a rate of
    1e-4 and a trained weight are in the middle. A model that is trained long from there drifts.

    Example: ``transform(model, recipe="fp8")`` where ``nn.init.zeros_(model.head.weight)``.
    Fix: none is needed; ``unitify.rebase_`` chooses scales anew once the parameters have grown.
    """

    code: ClassVar[str] = "U209"
    why: ClassVar[str] = (
        "{count} parameters ({names}) are next to zero; scales behind them are guessed"
    )
    fix: ClassVar[str] = "Exact as it is; with casts, call unitify.rebase_ after some steps"
    count: int
    names: str
