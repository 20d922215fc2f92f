"""``AssembledModule``: a model whose islands run as transformed graphs, each a part.

A copy of the model holds the stored weights and runs the model's Python code. The ``forward`` of
each island calls its graph. Every module keeps its hooks, attributes and methods, and parameters
keep their names.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from unitify.capture.exporting import switched_off
from unitify.capture.islands import Recording, path_of
from unitify.capture.recorded_graph import parameter_aliases
from unitify.capture.settled import install
from unitify.capture.tree import copy_of
from unitify.capture.watching import call_of, share_hooks
from unitify.capture.whole import Capture
from unitify.module.about import About
from unitify.module.graph_forward import GraphForward, own_code_again
from unitify.module.of_class import follow_class
from unitify.module.unit_scaled import UnitScaledModule
from unitify.module.watched import Reason
from unitify.part import Part, parts_of, value_name
from unitify.plan.scale_plan import Scale, ScalePlan, widest_gap
from unitify.recipe.choices import Choices


class AssembledModule(UnitScaledModule):
    """A ``UnitScaledModule`` of several graphs. ``parts``: a module for each, by name.

    ``plan.values`` names values ``part/value``; ``plan.parameters`` has the names of the whole
    model. ``graph`` is one call of ``host``, the model around the parts.
    """

    host: nn.Module

    def __init__(
        self,
        host: nn.Module,
        parts: Sequence[Part],
        about: About,
    ) -> None:
        self._take_tree(host)
        self.__dict__["host"] = host
        self.graph = _call_of_host()
        self.plan = joined({part.name: part.plan for part in parts}, host)
        self.about = about
        self.__dict__["_parts"] = {part.name: _attach(host, part, about) for part in parts}
        paths = [part.path for part in parts]
        for path in dict.fromkeys(paths):
            module = host.get_submodule(path)
            if not path and all(part.capture.has_hooks for part in parts):
                # The graphs contain these hooks.
                share_hooks(nn.Module(), host)
            graphs = [part for name, part in self.parts.items() if path_of(name) == path]
            GraphForward(module, _Island(graphs))
        first: dict[str, UnitScaledModule] = {}
        for name, part in self.parts.items():
            if first.setdefault(path_of(name), part) is part:
                part.divide()
            # Graphs of the same module share the submodules of the first.
            part._submodules = first[path_of(name)]._submodules
        for name, part in self.parts.items():
            part.watch(host, path_of(name))
        self._take_signature(inspect.signature(type(host).forward))

    @property
    def parts(self) -> Mapping[str, UnitScaledModule]:
        """The modules that hold one graph each, by name."""
        parts: Mapping[str, UnitScaledModule] = self.__dict__["_parts"]
        for name, part in parts.items():
            part.training = self.host.get_submodule(path_of(name)).training
        return parts

    @property
    def original(self) -> nn.Module:
        """The copy of the model, which holds stored weights."""
        return self.host

    @property
    def casts(self) -> Choices:
        """The choice of the recipe for every value of every part, as ``part/value``."""
        return Choices(
            replace(choice, value=value_name(name, choice.value))
            for name, part in self.parts.items()
            for choice in part.casts
        )

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One call of the model's own code, with the graphs of its islands."""
        follow_class(self.host, self._added())
        with switched_off(self._caching):
            return call_of(self.host)(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> AssembledModule:
        parts = [replace(part, graph=copy.deepcopy(part.graph)) for part in parts_in(self)]
        host = copy_of(self.host, memo)
        follow_class(host, {})
        own_code_again(host)
        made = AssembledModule(host, parts, self.about)
        for name, part in self.parts.items():
            copied = made.parts[name]
            copied.watch(host, path_of(name), part)
            copied.is_inference = made.is_inference = part.is_inference
        memo[id(self)] = made
        made.take_after(self, memo)
        return made


def assemble(
    recorded: Recording, parts: Sequence[Part], about: About | None = None
) -> UnitScaledModule:
    """The module of ``parts``, the rewritten parts of ``recorded``: one graph, or several.

    A weight of scale one may share the model's memory until ``take_own_memory``.
    """
    about = About(recorded.notes) if about is None else about
    if recorded.whole is not None:
        return build(parts[0], about)
    return _islands(recorded.model, parts, about)


def build(part: Part, about: About | None = None) -> UnitScaledModule:
    """The module of one whole graph, with copies of the model's parameters over their scales."""
    captured = part.capture
    memo: dict[int, Any] = {}
    root = copy_of(captured.model, memo, on_write=True)
    install(captured.made, root)
    _store(root, part.plan)
    for target, constant in captured.constants.items():
        if isinstance(constant, torch.Tensor):
            # A constant that the model itself holds is the same tensor in the module.
            held = memo.get(id(constant), constant)
            root.register_buffer(target, held, persistent=False)
        else:
            root.add_module(target, constant)
    module = UnitScaledModule(root, part, about or About(captured.diagnostics))
    module.divide()
    module.watch(root)
    if not captured.has_hooks:
        share_hooks(root, module)
    return module


def _islands(model: nn.Module, parts: Sequence[Part], about: About) -> AssembledModule:
    """The module of ``parts`` within a copy of ``model``, whose weights become stored ones."""
    # The model's own code runs, too, and may write into its parameters.
    host = copy_of(model)
    install(parts[0].capture.made, host)
    _store(host, joined({part.name: part.plan for part in parts}, host))
    return AssembledModule(host, parts, about)


def _store(root: nn.Module, plan: ScalePlan) -> None:
    """Divide each parameter by its scale. One whose scale is one stays in its memory."""
    with torch.no_grad():
        for name, parameter in root.named_parameters():
            scale = plan.parameters[name].fwd
            if scale != 1.0:
                parameter.div_(scale)


def unscaled(model: nn.Module, captures: Mapping[str, Capture]) -> AssembledModule:
    """``model`` whose islands run their captured graphs, with every scale one."""
    parts = [replace(p, graph=copy.deepcopy(p.graph)) for p in parts_of(captures)]
    return _islands(model, parts, About())


def parts_in(module: UnitScaledModule) -> tuple[Part, ...]:
    """The present parts of ``module``: their plans, graphs and casts."""
    return tuple(
        Part(name, part.capture, part.plan, part.graph, choices=part._casts)
        for name, part in module.parts.items()
    )


def joined(plans: Mapping[str, ScalePlan], model: nn.Module) -> ScalePlan:
    """All parts' plans as one: values as ``part/value``, parameters of the whole model."""
    first = parameter_aliases(model)
    one = next(iter(plans.values()))
    scales: dict[str, Scale] = {}
    for name, plan in plans.items():
        for own, scale in plan.parameters.items():
            path = path_of(name)
            # A parameter may have been replaced since: pruning does that.
            if (stands := first.get(f"{path}.{own}" if path else own)) is not None:
                scales.setdefault(stands, scale)
    return ScalePlan(
        values={
            value_name(name, value): scale
            for name, plan in plans.items()
            for value, scale in plan.values.items()
        },
        parameters={name: scales.get(stands, Scale()) for name, stands in first.items()},
        versions=one.versions,
        units={
            value_name(name, value): scale
            for name, plan in plans.items()
            for value, scale in plan.units.items()
        },
        weights=one.weights,
        placement=one.placement,
        carrier=one.carrier,
        gap=widest_gap(plan.gap for plan in plans.values()),
    )


def plan_of(plan: ScalePlan, part: str, captured: Capture) -> ScalePlan:
    """The plan of one part, out of a joined plan."""
    path = path_of(part)

    def own(scales: Mapping[str, Scale]) -> dict[str, Scale]:
        return {
            value.removeprefix(value_name(part, "")): scale
            for value, scale in scales.items()
            if value.rpartition("/")[0] == part
        }

    return replace(
        plan,
        values=own(plan.values),
        parameters={
            name: plan.parameters.get(f"{path}.{name}" if path else name, Scale())
            for name in captured.aliases
        },
        units=own(plan.units),
    )


def _call_of_host() -> fx.Graph:
    graph = fx.Graph()
    args, kwargs = graph.placeholder("*args"), graph.placeholder("**kwargs")
    host = graph.get_attr("host")
    graph.output(graph.call_function(call, (host, args, kwargs)))
    return graph


def call(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The module's own call. An interpreter passes a list instead of empty keyword arguments."""
    return module(*args, **dict(kwargs))


def _attach(host: nn.Module, part: Part, about: About) -> UnitScaledModule:
    """The part as a module on the weights of its submodule of ``host``."""
    captured = part.capture
    module = host.get_submodule(part.path)
    for target, constant in captured.constants.items():
        if hasattr(module, target):
            continue  # A copy of an assembled module already has them.
        if isinstance(constant, torch.Tensor):
            module.register_buffer(target, constant, persistent=False)
        else:
            module.add_module(target, constant)
    own = About(captured.diagnostics, about.recipe)
    return UnitScaledModule(module, part, own)


class _Island:
    """Runs an island: by the graph that holds for a call, else by its own code."""

    def __init__(self, graphs: list[UnitScaledModule]) -> None:
        self.graphs = graphs

    def run(
        self,
        module: nn.Module,
        own: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """The call ``(args, kwargs)`` of ``module``, whose own code is ``own``."""
        refused: tuple[UnitScaledModule, Reason] | None = None
        for part in self.graphs:
            if part.capture.mode not in (None, "train" if module.training else "eval"):
                continue
            if (changed := part._changed()) is not None:
                return part.run_own(changed, own, args, kwargs)
            flat = part.capture.call.fitted(args, kwargs, part._attribute)
            if isinstance(flat, list):
                part.training = module.training
                return part.run_flat(flat, args, kwargs)
            refused = refused or (part, flat)
        if refused is not None:
            return refused[0].run_own(refused[1], own, args, kwargs)
        # No graph has the module's mode.
        first = self.graphs[0]
        first.training = module.training
        return first.run_own(first._other_mode(), own, args, kwargs)

    def copied_apart(self, module: nn.Module) -> None:
        """Warn that a copy of ``module`` alone has no graph."""
        self.graphs[0].copied_apart()
