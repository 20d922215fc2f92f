"""``AssembledModule``: a model some of whose modules run as transformed graphs, each a part.

The Python code of the model stays: a copy of it holds the stored weights, and the ``forward`` of
each island's module calls the island's graph. Hooks, attributes and methods of every module are
there as before, and parameters have their names.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from unitify.capture.exporting import switched_off
from unitify.capture.islands import path_of
from unitify.capture.observing import install
from unitify.capture.recorded_graph import parameter_aliases
from unitify.capture.tree import copy_of
from unitify.capture.watching import call_of, share_hooks
from unitify.capture.whole import Capture
from unitify.diagnostics import Diagnostic
from unitify.module.graph_forward import GraphForward, own_code_again
from unitify.module.unit_scaled import UnitScaledModule
from unitify.module.watched import Reason
from unitify.plan.fixed import parameter_of
from unitify.plan.scale_plan import Scale, ScalePlan, parameter_units, widest_gap
from unitify.recipe.choices import Choice

#: A part as the pipeline made it: its capture, the graph on stored values, and its plan.
Part = tuple[Capture, fx.Graph, ScalePlan]


class AssembledModule(UnitScaledModule):
    """A ``UnitScaledModule`` of several graphs. ``parts``: each as a module of its own, by name.

    ``plan.values`` names values ``part/value``; ``plan.parameters`` has the names of the whole
    model. Its ``graph`` is the call of ``host``, the model around the parts.
    """

    host: nn.Module

    def __init__(
        self,
        host: nn.Module,
        parts: Mapping[str, Part],
        diagnostics: tuple[Diagnostic, ...] = (),
    ) -> None:
        self._take_tree(host)
        self.__dict__["host"] = host
        self.graph = _call_of_host()
        self.plan = joined({name: part[2] for name, part in parts.items()}, host)
        self.diagnostics = diagnostics
        self.__dict__["_parts"] = {name: _attach(host, name, part) for name, part in parts.items()}
        for path in dict.fromkeys(path_of(name) for name in parts):
            module = host.get_submodule(path)
            if not path and all(part[0].has_hooks for part in parts.values()):
                # They are in the graphs.
                share_hooks(nn.Module(), host)
            graphs = [part for name, part in self.parts.items() if path_of(name) == path]
            GraphForward(module, _Island(graphs))
        first: dict[str, UnitScaledModule] = {}
        for name, part in self.parts.items():
            if first.setdefault(path_of(name), part) is part:
                part.divide()
            # Of several graphs of one module the first has those of its submodules.
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
        """The copy of the model that this module stands for; it holds stored weights."""
        return self.host

    @property
    def casts(self) -> tuple[Choice, ...]:
        """What the recipe does with every value of every part, as ``part/value``."""
        return tuple(
            replace(choice, value=value_name(name, choice.value))
            for name, part in self.parts.items()
            for choice in part.casts
        )

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One call: the model's own code, with the graphs of its islands."""
        with switched_off(self._caching):
            return call_of(self.host)(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> AssembledModule:
        parts = {
            name: (part.capture, copy.deepcopy(part.graph), part.plan)
            for name, part in self.parts.items()
        }
        host = copy_of(self.host, memo)
        own_code_again(host)
        made = AssembledModule(host, parts, self.diagnostics)
        for name, part in self.parts.items():
            copied = made.parts[name]
            copied.watch(host, path_of(name), part)
            copied.recipe, copied._casts = part.recipe, part.casts
            copied.is_inference = made.is_inference = part.is_inference
        made.recipe, made.verification = self.recipe, self.verification
        made.scales = self.scales
        memo[id(self)] = made
        return made


def assemble(
    model: nn.Module, parts: Mapping[str, Part], diagnostics: tuple[Diagnostic, ...] = ()
) -> AssembledModule:
    """The module of ``parts`` around a copy of ``model``, whose weights become stored ones."""
    host = copy_of(model)
    install(next(iter(parts.values()))[0].made, host)
    scales = joined({name: part[2] for name, part in parts.items()}, host).parameters
    with torch.no_grad():
        for name, parameter in host.named_parameters():
            parameter.div_(scales[name].fwd)
    return AssembledModule(host, parts, diagnostics)


def unscaled(model: nn.Module, captures: Mapping[str, Capture]) -> AssembledModule:
    """``model`` with its captured graphs in the places of its islands, every scale one."""
    return assemble(
        model,
        {
            name: (
                captured,
                copy.deepcopy(captured.graph),
                ScalePlan({}, dict.fromkeys(captured.aliases, Scale())),
            )
            for name, captured in captures.items()
        },
    )


def value_name(part: str, value: str) -> str:
    """The name of a part's value among those of all parts."""
    return f"{part}/{value}" if part else value


def joined(plans: Mapping[str, ScalePlan], model: nn.Module) -> ScalePlan:
    """One plan of all parts' plans: values as ``part/value``, parameters of the whole model."""
    first = parameter_aliases(model)
    one = next(iter(plans.values()))
    scales: dict[str, Scale] = {}
    for name, plan in plans.items():
        for own, scale in plan.parameters.items():
            path = path_of(name)
            scales.setdefault(first[f"{path}.{own}" if path else own], scale)
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


def agreed(chosen: ScalePlan, name: str, captured: Capture, parts: Mapping[str, Part]) -> ScalePlan:
    """``chosen`` with the parameters' scales of the first recording, if this is a further one.

    Of true parameters it is their units that the two have in common.
    """
    first = parts.get(path_of(name))
    if first is None:
        return chosen
    units = parameter_units(first[0], first[2])
    held = {
        node.name: parameter
        for node in captured.graph.nodes
        if (parameter := parameter_of(captured, node)) and node.name in chosen.values
    }
    scales = {name: first[2].parameters[parameter] for name, parameter in held.items()}
    own = {name: unit for name, unit in chosen.units.items() if name not in held}
    own |= {n: units[p] for n, p in held.items() if units[p] != scales[n]}
    return replace(
        chosen, values={**chosen.values, **scales}, parameters=first[2].parameters, units=own
    )


def plan_of(plan: ScalePlan, part: str, captured: Capture) -> ScalePlan:
    """What of a joined plan is the plan of one part."""
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
    """The module's own call. An interpreter has no keyword inputs: it has a list of nothing."""
    return module(*args, **dict(kwargs))


def _attach(host: nn.Module, name: str, part: Part) -> UnitScaledModule:
    """The part as a module on the weights of its place in ``host``."""
    captured, graph, plan = part
    module = host.get_submodule(path_of(name))
    for target, constant in captured.constants.items():
        if hasattr(module, target):
            continue  # A copy of an assembled module has them already.
        if isinstance(constant, torch.Tensor):
            module.register_buffer(target, constant, persistent=False)
        else:
            module.add_module(target, constant)
    return UnitScaledModule(module, graph, plan, captured, captured.diagnostics)


class _Island:
    """Runs an island's module: by the graph that holds for a call, or else by its own code."""

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
            if (turned := part._turned()) is not None:
                return part.run_own(turned, own, args, kwargs)
            flat = part.capture.call.fitted(args, kwargs)
            if isinstance(flat, list):
                part.training = module.training
                return part.run_flat(flat, args, kwargs)
            refused = refused or (part, flat)
        if refused is not None:
            return refused[0].run_own(refused[1], own, args, kwargs)
        # No graph is of the module's mode.
        first = self.graphs[0]
        first.training = module.training
        return first.run_own(first._other_mode(), own, args, kwargs)

    def copied_apart(self, module: nn.Module) -> None:
        """Say that a copy of ``module`` alone has no graph."""
        self.graphs[0].copied_apart()
