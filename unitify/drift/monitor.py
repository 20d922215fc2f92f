"""``monitor``: how far the values of a module in training have drifted from unit scale.

Every N calls the module runs its graph node by node. The monitor reads each value and gradient:
its stored RMS, and the share of its elements outside the range of its cast's format. Readings go
to any object with ``add_scalar``, and to a file of JSON lines.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, TextIO

import torch
from torch import Tensor, fx, nn

from unitify.arrival import JOIN
from unitify.capture.execution import GraphRunner, on_gradient
from unitify.diagnostics import NotWritten, UnitifyError, UnknownOption
from unitify.drift.readings import WatchedTensor, watches
from unitify.drift.rebase import transformed
from unitify.formats.losses import Loss, loss
from unitify.formats.table import FORMATS, Format
from unitify.measure.tally import Tally
from unitify.module.unit_scaled import UnitScaledModule
from unitify.part import value_name
from unitify.rulebook.rule_table import load_rules
from unitify.runtime.arrive import factor_of
from unitify.runtime.cast import amax_factor


class Writer(Protocol):
    """TensorBoard's ``SummaryWriter``, or an object like it."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> Any:
        """Note ``scalar_value`` under ``tag``."""


@dataclass(frozen=True)
class Reading:
    """One value or gradient at one step. Shares are of its non-zero elements, in [0, 1].

    ``rms``: root mean square as stored; that of a true weight, and with placement "casts" that of
    every value, is divided by the scale at which a cast rounds it.
    ``underflow``: the share that is zero or subnormal in the format of its cast; ``saturation``:
    the share beyond the format's largest number. None where the value is not cast, and ``monitor``
    had no ``format``. Where casts adapt to the size of the gradients that arrive, every gradient is
    read with that factor.
    """

    rms: float
    underflow: float | None = None
    saturation: float | None = None


@dataclass(frozen=True)
class Record:
    """All readings of one call. ``step``: the number of the call, from zero."""

    step: int
    forward: Mapping[str, Reading]
    backward: Mapping[str, Reading]

    @property
    def outside(self) -> float:
        """The share of non-zero readings whose RMS is not within [1/2, 2]."""
        found = [r.rms for side in (self.forward, self.backward) for r in side.values() if r.rms]
        return sum(not 0.5 <= rms <= 2.0 for rms in found) / len(found) if found else 0.0

    def scalars(self) -> Iterator[tuple[str, float]]:
        """Every number by its tag, ``unitify/forward/rms/<value>`` and so on."""
        yield "unitify/outside", self.outside
        for side in ("forward", "backward"):
            for value, reading in getattr(self, side).items():
                for name, number in asdict(reading).items():
                    if number is not None:
                        yield f"unitify/{side}/{name}/{value}", number


def monitor(
    module: nn.Module,
    writer: Writer | None = None,
    *,
    every: int = 100,
    path: str | os.PathLike[str] | None = None,
    format: Format | str | None = None,
    rules: Any = (),
) -> Monitor:
    """Read every value of ``module`` each ``every`` calls, from the first one on.

    - ``module``: a transformed module, or a module around one. Pass a compiled module as
      ``torch.compile`` returned it; the calls that are read run eagerly.
    - ``writer``: an object with ``add_scalar(tag, value, step)``
    - ``path``: a file to which each record is appended as a line of JSON
    - ``format``: a ``Format``, or its name, for values that are not cast; None reads shares of
      cast values only
    - ``rules``: those passed to ``transform``

    Calls with gradients enabled count (each micro-batch is one). A record is complete at the end of
    the backward pass after its call. Results and gradients are those of any other call.

    A call that is read costs about two eager calls (1.6 to 2.2, measured on language models of
    width 256 and 64). Other calls cost two Python hooks, which is not measurable.

    Raises ``UnitifyError``: U001 for an invalid option; U009 where nothing is transformed; U606
    where ``path`` cannot be written.
    """
    if every < 1:
        raise _unknown("every", every, "1, 2, …")
    if writer is not None and not callable(getattr(writer, "add_scalar", None)):
        raise _unknown("writer", type(writer).__name__, "an object with add_scalar")
    if isinstance(format, str):
        if format not in FORMATS:
            raise _unknown("format", format, ", ".join(FORMATS))
        format = FORMATS[format]
    return Monitor(module, writer, every, _opened(path), format, rules)


def _unknown(option: str, value: Any, choices: str) -> UnitifyError:
    return UnitifyError(UnknownOption(option=option, value=str(value), choices=choices))


def _opened(path: str | os.PathLike[str] | None) -> TextIO | None:
    if path is None:
        return None
    try:
        return open(path, "a", encoding="utf-8")
    except OSError as error:
        problem = error.strerror or str(error)
        raise UnitifyError(NotWritten(path=os.fspath(path), problem=problem)) from None


class Monitor:
    """The result of ``monitor``. ``latest``: the last complete record; ``close`` ends it."""

    latest: Record | None = None

    def __init__(
        self,
        module: nn.Module,
        writer: Writer | None,
        every: int,
        file: TextIO | None,
        format: Format | None,
        rules: Any,
    ) -> None:
        self.wholes = transformed(module)
        self.writer, self.every, self.file, self.format = writer, every, file, format
        self.rules = load_rules(rules)
        self.calls = 0
        self.pending: _Pending | None = None
        self.stack = contextlib.ExitStack()
        self.handles = [
            module.register_forward_pre_hook(self._before),
            module.register_forward_hook(self._after, always_call=True),
        ]

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Write the readings so far, and remove the monitor from the module."""
        self._finish()
        for handle in self.handles:
            handle.remove()
        if self.file is not None:
            self.file.close()
            self.file = None

    def _before(self, module: nn.Module, args: Any) -> None:
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return
        step, self.calls = self.calls, self.calls + 1
        if step % self.every:
            return
        self._finish()
        self.pending = pending = _Pending(step, self._finish)
        self.stack.enter_context(torch.compiler.set_stance("force_eager"))
        for whole in self.wholes:
            for name, part in whole.parts.items():
                found = watches(part, self.format, self.rules)
                run = pending.runner(part.graph, name, found)
                self.stack.enter_context(part.running(run))

    def _after(self, module: nn.Module, args: Any, result: Any) -> None:
        self.stack.close()

    def _finish(self) -> None:
        """Make a record of the pending call, and write it."""
        pending, self.pending = self.pending, None
        if pending is None:
            return
        record = self.latest = pending.record()
        if self.writer is not None:
            for tag, number in record.scalars():
                self.writer.add_scalar(tag, number, record.step)
        if self.file is not None:
            self.file.write(json.dumps(_plain(record)) + "\n")
            self.file.flush()


def _plain(record: Record) -> dict[str, Any]:
    def plain(readings: Mapping[str, Reading]) -> dict[str, dict[str, float | None]]:
        return {
            # JSON has no NaN and no infinity; both are null.
            value: {
                name: n if math.isfinite(n) else None
                for name, n in asdict(reading).items()
                if n is not None
            }
            for value, reading in readings.items()
        }

    forward, backward = plain(record.forward), plain(record.backward)
    found = {"step": record.step, "outside": record.outside}
    return {**found, "forward": forward, "backward": backward}


@dataclass
class _Pending:
    """A call that is being read."""

    step: int
    finish: Callable[[], None]
    #: Tallies of stored values and of operands of casts, by the names in ``watched``.
    stored: Tally = field(default_factory=Tally)
    cast: Tally = field(default_factory=lambda: Tally(counts_magnitudes=True))
    #: A watch and the name of the value.
    watched: dict[tuple[WatchedTensor, str], str] = field(default_factory=dict)
    handles: list[Any] = field(default_factory=list)
    is_ending: bool = False
    #: Part → the factor by which its casts multiply gradients in the running backward pass.
    factors: dict[str, Tensor] = field(default_factory=dict)

    def runner(
        self, graph: fx.Graph, part: str, found: Mapping[str, list[WatchedTensor]]
    ) -> Callable[..., Any]:
        """The function that runs instead of the graph of ``part``."""

        def observe(node: fx.Node, value: Any) -> None:
            if node.target is JOIN and value.requires_grad:
                self.handles.append(on_gradient(value, self.on_size(part)))
            for watch in found.get(node.name, ()) if isinstance(value, Tensor) else ():
                name = value_name(part, watch.value)
                if watch.direction == "forward":
                    self.add(watch, name, value)
                elif value.requires_grad:
                    self.handles.append(on_gradient(value, self.on_gradient(watch, name, part)))

        def run(module: UnitScaledModule, *inputs: Any) -> Any:
            def attribute(target: str) -> Any:
                value: Any = module
                for name in target.split("."):
                    value = getattr(value, name)
                return value

            return GraphRunner(graph, attribute, observe).run(*inputs)

        return run

    def on_size(self, part: str) -> Callable[[Tensor], None]:
        """A hook that keeps the factor that the casts of a part will use for gradients."""

        def hook(size: Tensor) -> None:
            self.factors[part] = factor_of(size)

        return hook

    def on_gradient(self, watch: WatchedTensor, name: str, part: str) -> Callable[[Tensor], None]:
        """A hook that reads a gradient, and ends the call when the backward pass does."""

        def hook(gradient: Tensor) -> None:
            factor = self.factors.get(part)
            self.add(watch, name, gradient if factor is None else gradient * factor)
            if not self.is_ending:
                self.is_ending = True
                engine = torch.autograd.Variable._execution_engine
                engine.queue_callback(self.finish)

        return hook

    def add(self, watch: WatchedTensor, name: str, tensor: Tensor) -> None:
        """Count ``tensor`` for the value ``name``, in the units of ``watch``."""
        key = self.watched.setdefault((watch, name), str(len(self.watched)))
        if watch.format is None:
            self.stored.add(key, 0, tensor)
            return
        if watch.amax:
            tensor = tensor.detach() * amax_factor(tensor, watch.format)
        self.cast.add(key, 0, tensor)

    def record(self) -> Record:
        """The counts as a record."""
        for handle in self.handles:
            handle.remove()
        magnitudes = self.cast.magnitudes()
        sizes: dict[str, dict[str, float]] = {"forward": {}, "backward": {}}
        casts: dict[str, dict[str, list[tuple[float, Loss]]]] = {"forward": {}, "backward": {}}
        for (watch, name), key in self.watched.items():
            sizes[watch.direction].setdefault(name, 0.0)
            if watch.format is None:
                rms = self.stored.rms(key, 0) or 0.0
                sizes[watch.direction][name] = math.ldexp(rms, watch.exponent)
            else:
                held = magnitudes[key, 0]
                lost = loss(watch.format, held, 1.0 if watch.amax else 2.0**-watch.exponent)
                casts[watch.direction].setdefault(name, []).append((held.total, lost))
        forward, backward = (
            {name: _reading(rms, casts[side].get(name, [])) for name, rms in sizes[side].items()}
            for side in ("forward", "backward")
        )
        return Record(self.step, forward, backward)


def _reading(rms: float, casts: list[tuple[float, Loss]]) -> Reading:
    """One reading. ``casts``: for each, the non-zero elements and the loss of its format."""
    if not casts:
        return Reading(rms)
    total = math.fsum(count for count, _ in casts) or 1.0
    return Reading(
        rms=rms,
        underflow=math.fsum(n * (lost.flushed + lost.subnormal) for n, lost in casts) / total,
        saturation=math.fsum(n * lost.saturated for n, lost in casts) / total,
    )
