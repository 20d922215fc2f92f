"""What unitify says when something is wrong or was left alone.

Every message has a stable code, and four fields: *where*, *why*, *fix* and the class
docstring, which ``unitify explain U101`` prints. Codes are grouped by stage (U0 use,
U1 capture, U2 estimates, U3 plan and rewrite, U4 cast, U5 verify, U6 checkpoints) and never
used again for something else. The text of a class is static; what varies is held in
typed fields, so that terminal, JSON and CI views agree.
"""

from __future__ import annotations

import dataclasses
import inspect
from dataclasses import dataclass, field
from typing import Any, ClassVar


@dataclass(frozen=True)
class Diagnostic:
    """One finding: a stable code and the values that fill its text."""

    code: ClassVar[str] = ""
    why: ClassVar[str] = ""
    fix: ClassVar[str] = ""

    #: Module path, value name or file, and the user's source line where known.
    where: str = field(default="", kw_only=True)

    @property
    def message(self) -> str:
        """One line: what is wrong, with this finding's values."""
        return self.why.format(**self.values())

    @property
    def remedy(self) -> str:
        """One line: what to do about it."""
        return self.fix.format(**self.values())

    def values(self) -> dict[str, Any]:
        """The fields that vary, by name."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    def as_json(self) -> dict[str, Any]:
        """The finding as plain data, for reports."""
        return {
            "code": self.code,
            "where": self.where,
            "why": self.message,
            "fix": self.remedy,
            "values": {k: v for k, v in self.values().items() if k != "where"},
        }

    def __str__(self) -> str:
        place = f" [{self.where}]" if self.where else ""
        return f"{self.code}{place} {self.message}. {self.remedy}"


class UnitifyError(Exception):
    """A failure that the user can mend; carries one or more diagnostics."""

    def __init__(self, *diagnostics: Diagnostic) -> None:
        super().__init__("\n".join(str(d) for d in diagnostics))
        self.diagnostics = diagnostics

    @property
    def code(self) -> str:
        """The code of the first diagnostic."""
        return self.diagnostics[0].code


class UnitifyWarning(UserWarning):
    """Something that was left alone, or is not what it seems."""


@dataclass(frozen=True)
class UnknownOption(Diagnostic):
    """An argument has a value that unitify does not know.

    Example: ``transform(model, scales="mesured")``.
    Fix: use one of the values that the message lists.
    """

    code: ClassVar[str] = "U001"
    why: ClassVar[str] = "{option}={value!r} is not one of {choices}"
    fix: ClassVar[str] = "Use one of the listed values"
    option: str
    value: str
    choices: str


@dataclass(frozen=True)
class InputsNeeded(Diagnostic):
    """The example inputs cannot be inferred from the model.

    Capture runs the model once on example inputs (their values do not matter, their shapes
    and types do). They are inferred for Hugging Face models and for models whose first layer
    states its input; every other model needs them spelled out.

    Example: ``transform(MyModel())`` where ``MyModel.forward(self, graph, x)``.
    Fix: ``transform(model, (graph, x))``.
    """

    code: ClassVar[str] = "U002"
    why: ClassVar[str] = "no example inputs were given and {reason}"
    fix: ClassVar[str] = "Pass them, for example: {call}"
    reason: str
    call: str


@dataclass(frozen=True)
class BatchesNeeded(Diagnostic):
    """``scales="measured"`` was asked for with an empty list of batches.

    Fix: pass at least one batch (a tuple of positional or a dict of keyword inputs), or leave
    ``batches`` out to measure on the example inputs.
    """

    code: ClassVar[str] = "U003"
    why: ClassVar[str] = "scales='measured' has no batch to measure on"
    fix: ClassVar[str] = "Pass batches=[inputs, ...] or leave it out"


@dataclass(frozen=True)
class NotCaptured(Diagnostic):
    """A module could not be captured as a graph and was left as it is.

    Its capturable submodules are transformed one by one; they are exact at their
    boundaries, so the whole still computes the same function.

    Fix: rewrite the data-dependent part with ``torch.where`` or ``torch.cond``, or leave it.
    """

    code: ClassVar[str] = "U101"
    why: ClassVar[str] = "{module} cannot be captured whole: {reason}"
    fix: ClassVar[str] = "Its submodules are transformed one by one; this part is left alone"
    module: str
    reason: str


@dataclass(frozen=True)
class NothingCaptured(Diagnostic):
    """Neither the model nor any of its submodules could be captured.

    Fix: look at the reason given; the usual ones are inputs that do not fit the model and
    data-dependent Python control flow.
    """

    code: ClassVar[str] = "U102"
    why: ClassVar[str] = "no part of the model could be captured: {reason}"
    fix: ClassVar[str] = "Check that model(*example_inputs, **example_kwargs) runs by itself"
    reason: str


@dataclass(frozen=True)
class OneModeOnly(Diagnostic):
    """The graph follows one of ``.train()`` and ``.eval()`` only.

    The two graphs differ in more than mode flags (or one could not be captured), so
    the other mode is refused instead of silently wrong.

    Fix: put the model into the mode that you need before ``transform``.
    """

    code: ClassVar[str] = "U103"
    why: ClassVar[str] = "only {mode} mode was captured: {reason}"
    fix: ClassVar[str] = "Call model.{other}() first and transform again to use that mode"
    mode: str
    other: str
    reason: str


@dataclass(frozen=True)
class InputMismatch(Diagnostic):
    """The transformed module was called with inputs unlike those it was captured with.

    Fix: call it with the same arguments, or transform again with inputs of the new form.
    """

    code: ClassVar[str] = "U104"
    why: ClassVar[str] = "{problem}"
    fix: ClassVar[str] = "The module was captured for {expected}; transform again for other inputs"
    problem: str
    expected: str


@dataclass(frozen=True)
class AliasedMutation(Diagnostic):
    """An in-place operation writes through a view that has no out-of-place counterpart.

    Fix: write ``y = x.clone(); y[...] = v`` on the tensor itself, or use ``torch.where``.
    """

    code: ClassVar[str] = "U105"
    why: ClassVar[str] = "{operation} writes into {view}, which no rule can write back"
    fix: ClassVar[str] = "Write into the tensor itself, or use an out-of-place operation"
    operation: str
    view: str


@dataclass(frozen=True)
class FrozenDimension(Diagnostic):
    """A dimension that one might expect to be free was fixed by the model itself.

    Fix: pass ``dynamic_shapes`` as for ``torch.export.export``, or accept the fixed size.
    """

    code: ClassVar[str] = "U106"
    why: ClassVar[str] = "the graph holds for {dimension} = {size} only"
    fix: ClassVar[str] = "Give example inputs with sizes above one, or pass dynamic_shapes"
    dimension: str
    size: int


@dataclass(frozen=True)
class CheckpointingLost(Diagnostic):
    """The model uses activation checkpointing, which a captured graph does not keep.

    Results are the same; peak memory is higher.
    """

    code: ClassVar[str] = "U107"
    why: ClassVar[str] = "activation checkpointing is not kept in the graph"
    fix: ClassVar[str] = "Results are the same; expect more memory in training"


@dataclass(frozen=True)
class CacheLeftOut(Diagnostic):
    """A generation cache among the outputs was switched off for capture.

    Hugging Face models return ``past_key_values`` when ``config.use_cache`` is set; the
    transformed module returns the other outputs.
    """

    code: ClassVar[str] = "U108"
    why: ClassVar[str] = "config.use_cache was set; the captured graph returns no cache"
    fix: ClassVar[str] = "Use the original model for incremental decoding"


@dataclass(frozen=True)
class GradientLost(Diagnostic):
    """A ``torch.autograd.Function`` of the model would lose its backward pass in the graph.

    ``torch.export`` traces through its forward and drops its own backward, silently, so
    the module that holds it is left out of the capture.

    Fix: register it as an operator: ``torch.library.custom_op`` with ``register_autograd``.
    """

    code: ClassVar[str] = "U109"
    why: ClassVar[str] = "{function} has a backward pass of its own, which export would drop"
    fix: ClassVar[str] = "Register it with torch.library.custom_op and register_autograd"
    function: str


@dataclass(frozen=True)
class RuleInvalid(Diagnostic):
    """A rule file holds something that is not a rule.

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

    Fix: add a rule file: ``transform(model, rules=["my_rules.toml"])``.
    """

    code: ClassVar[str] = "U202"
    why: ClassVar[str] = "{operation} has no rule and was restored to true scale ({count} nodes)"
    fix: ClassVar[str] = "Exact as it is; add a rule to keep its operands at unit scale"
    operation: str
    count: int


@dataclass(frozen=True)
class UnknownValue(Diagnostic):
    """No value of the graph has the name that was asked for.

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

    Fix: find out where it comes from; the checkpoint may be damaged.
    """

    code: ClassVar[str] = "U204"
    why: ClassVar[str] = "{name} holds {count} non-finite values"
    fix: ClassVar[str] = "Check the weights or the inputs that lead to it"
    name: str
    count: int


@dataclass(frozen=True)
class PlanMismatch(Diagnostic):
    """A plan does not belong to the graph that it is applied to.

    Plans are keyed by value names; another version of the model, of torch or of
    transformers may name or order values differently.

    Fix: transform again; or install the versions that the plan names.
    """

    code: ClassVar[str] = "U301"
    why: ClassVar[str] = "the plan does not fit the graph: {problem}"
    fix: ClassVar[str] = "Transform again, or install the versions that the plan names"
    problem: str


@dataclass(frozen=True)
class ScaleNotAllowed(Diagnostic):
    """A scale of a plan is not a power of two, or scales a value that must stay true.

    Fix: use powers of two; leave inputs, outputs, buffers and masks at one.
    """

    code: ClassVar[str] = "U302"
    why: ClassVar[str] = "the scale {scale} of {value} is not allowed: {problem}"
    fix: ClassVar[str] = "Use powers of two, and one where the value must stay true"
    value: str
    scale: str
    problem: str


@dataclass(frozen=True)
class UnknownRecipe(Diagnostic):
    """There is no recipe of the given name.

    Fix: use one of the listed names, or pass a ``unitify.Recipe``.
    """

    code: ClassVar[str] = "U401"
    why: ClassVar[str] = "there is no recipe {name!r}"
    fix: ClassVar[str] = "Known recipes: {known}"
    name: str
    known: str


@dataclass(frozen=True)
class NotExact(Diagnostic):
    """The transformed module is not bitwise the original.

    This is a bug of unitify unless the original has values outside the normal range
    of its number format (subnormals, overflow), where power-of-two scaling rounds.

    Fix: report it with the model; ``Verification.differences`` names what differs.
    """

    code: ClassVar[str] = "U501"
    why: ClassVar[str] = "the result is not bitwise the original: {differences}"
    fix: ClassVar[str] = "Please report it; verify=False returns the module regardless"
    differences: str


@dataclass(frozen=True)
class WrongFactor(Diagnostic):
    """The emitted graph does not follow the one equation.

    Found by the checker that walks the original graph, the emitted graph and the plan
    without running them.

    Fix: this is a bug of unitify; please report it.
    """

    code: ClassVar[str] = "U502"
    why: ClassVar[str] = "{value}: {problem}"
    fix: ClassVar[str] = "Please report it"
    value: str
    problem: str


@dataclass(frozen=True)
class CheckpointUnreadable(Diagnostic):
    """The checkpoint is missing, truncated, or not a state dict.

    Fix: pass a ``.safetensors`` file, a ``.pt`` state dict or a Hugging Face folder.
    """

    code: ClassVar[str] = "U601"
    why: ClassVar[str] = "{path}: {problem}"
    fix: ClassVar[str] = "Pass a .safetensors file, a .pt state dict or a Hugging Face folder"
    path: str
    problem: str


@dataclass(frozen=True)
class UnsafeCheckpoint(Diagnostic):
    """The file holds pickled code, which unitify never runs.

    Fix: load it where you trust it and save its state dict as safetensors.
    """

    code: ClassVar[str] = "U602"
    why: ClassVar[str] = "{path} holds pickled objects beside tensors ({problem})"
    fix: ClassVar[str] = "Save model.state_dict() with safetensors and convert that"
    path: str
    problem: str


@dataclass(frozen=True)
class KeysDiffer(Diagnostic):
    """The names or shapes of the checkpoint are not those of the model.

    Fix: use the factory that belongs to the checkpoint.
    """

    code: ClassVar[str] = "U603"
    why: ClassVar[str] = "the checkpoint does not fit the model: {problem}"
    fix: ClassVar[str] = "Use the factory that belongs to the checkpoint"
    problem: str


@dataclass(frozen=True)
class FactoryFailed(Diagnostic):
    """The function given by ``--model`` or ``--inputs`` cannot be used.

    Fix: it must be importable as ``package.module:name`` and callable without arguments.
    """

    code: ClassVar[str] = "U604"
    why: ClassVar[str] = "{target}: {problem}"
    fix: ClassVar[str] = "It must be importable as package.module:name and take no arguments"
    target: str
    problem: str


@dataclass(frozen=True)
class OutputExists(Diagnostic):
    """The output folder exists already; nothing is ever overwritten.

    Fix: choose another folder or remove it.
    """

    code: ClassVar[str] = "U605"
    why: ClassVar[str] = "{path} exists already"
    fix: ClassVar[str] = "Choose another folder or remove it"
    path: str


def all_diagnostics() -> dict[str, type[Diagnostic]]:
    """Every diagnostic class by its code, in order of the codes."""
    classes = [c for c in globals().values() if inspect.isclass(c) and issubclass(c, Diagnostic)]
    return {c.code: c for c in sorted(classes, key=lambda c: c.code) if c.code}
