"""``UnitScaledModule``: the transformed model, an ``fx.GraphModule`` on stored values."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MethodType
from typing import Any, ClassVar

import torch
from torch import fx, nn

from unitify.capture.exporting import caching_configs
from unitify.capture.reachable import Location
from unitify.capture.signature import Refusal, bind
from unitify.capture.tree import copy_hooks, copy_of, share_tables
from unitify.capture.watching import NAMESPACE, call_of, share_hooks
from unitify.capture.whole import Capture
from unitify.diagnostics import (
    Diagnostic,
    NotPickled,
    OneModeOnly,
    UnitifyError,
)
from unitify.module.about import About
from unitify.module.folding import hold_codes
from unitify.module.graph_forward import own_code_again
from unitify.module.interpreted import OwnCall, as_first_called
from unitify.module.of_class import class_of, follow_class, properties_of
from unitify.module.retyping import record_anew
from unitify.module.tied import tied_again
from unitify.module.watched import Reason, WatchesTree
from unitify.part import Part
from unitify.plan.scale_plan import ScalePlan
from unitify.recipe.choices import Choice
from unitify.recipe.recipe import Recipe
from unitify.reparametrization import Reparametrization
from unitify.verification import Verification


class UnitScaledModule(WatchesTree, fx.GraphModule):
    """The same function and the same gradients as the model, with tensors near unit scale.

    It is called like the original, and returns its type. Parameters have the original's names.
    Parameters, inputs, outputs and their gradients are true. With ``plan.weights`` "stored" a
    parameter p is held as p / ``plan.parameters[name].fwd`` and gets the gradient g / ``.bwd``.
    """

    #: ``capture`` recognizes such a module by this.
    IS_TRANSFORMED: ClassVar[bool] = True
    plan: ScalePlan
    capture: Capture
    about: About
    _casts: tuple[Choice, ...] = ()
    #: Are cast weights held as codes? The model's own code cannot run then.
    is_inference: bool = False
    #: The modules, parameters and buffers on which the graph runs.
    _tree: nn.Module
    #: Names of its own parameters and buffers; and the class of this module as it was made.
    _own_tensors: frozenset[str]
    _own_class: type

    def __new__(cls, root: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """An instance of a new class, which is also a subclass of that of ``root``."""
        return object.__new__(class_of(cls, root, _OWN | _OF_A_GRAPH))

    def __init_subclass__(cls) -> None:
        """Do not call the hook of the model's class."""

    #: The graph contains any wrapper of the model's ``__call__``.
    __call__ = nn.Module.__call__

    def __init__(self, root: nn.Module, part: Part, about: About) -> None:
        self._take_tree(root)
        self.capture, self.about = part.capture, about
        self.take(part)

    def take(self, part: Part) -> None:
        """Run the graph of ``part`` from now on, by its plan, with its casts and constants."""
        for name, constant in part.constants.items():
            self.register_buffer(name, constant, persistent=False)
        self.plan, self._casts, self.graph = part.plan, part.choices, part.graph

    def _take_tree(self, root: nn.Module) -> None:
        """The modules, parameters and buffers of ``root``, in its order; not copies."""
        # No ``__init__`` runs: the model's would make another model.
        self.__dict__.update(vars(fx.GraphModule(nn.Module(), fx.Graph())))
        share_tables(root, self)
        self.__dict__.update(_tree=root, _caching=caching_configs(root), _warned=set())
        own = frozenset(root._parameters) | frozenset(root._buffers)
        self.__dict__.update(_own_tensors=own, _own_class=type(self))
        self.register_load_state_dict_post_hook(tied_again)  # type: ignore[no-untyped-call]
        self.training = root.training

    def __setattr__(self, name: str, value: Any) -> None:
        """Names of this class are its own, even if the model has a child of that name."""
        if name in _OWN or name in _OF_A_GRAPH:
            object.__setattr__(self, name, value)
            return
        is_followed = name in ("training", "forward")
        if not is_followed and (self._is_model_s(name) or self._is_asked_for(name)):
            setattr(self._tree, name, value)
            return
        super().__setattr__(name, value)
        if name == "training" and "_tree" in self.__dict__:
            self._tree.training = value

    def __delattr__(self, name: str) -> None:
        """The model's attributes are deleted where they are."""
        if self._is_model_s(name):
            delattr(self._tree, name)
        else:
            super().__delattr__(name)

    def _is_model_s(self, name: str) -> bool:
        """Is it a plain attribute of the model, not torch's, a tensor's or a submodule's?"""
        tree = self.__dict__.get("_tree")
        return tree is not None and name in vars(tree) and name not in _OF_EVERY_MODULE

    def _is_asked_for(self, name: str) -> bool:
        """Did the model's code look for an attribute of this name, perhaps in vain?

        A tensor of the model may become a plain attribute: pruning does that.
        """
        if name in self.__dict__.get("_own_tensors", ()):
            return True
        is_ready = {"_tree", "capture"} <= self.__dict__.keys() and name not in _OF_EVERY_MODULE
        root = Location("")
        return is_ready and any(
            root.then("attribute", asked) in self.capture.reads for asked in (name, NAMESPACE)
        )

    def __getattr__(self, name: str) -> Any:
        """The model's attribute; ``report`` where the model has none of that name."""
        if self._is_model_s(name):
            return vars(self._tree)[name]
        # A model's own ``report`` has priority, also while torch registers it.
        held = (self._modules, self._parameters, self._buffers) if name == "report" else ()
        if held and "about" in self.__dict__ and not any(name in table for table in held):
            # ``report`` imports this file, so it is imported on demand.
            from unitify.report.of_module import report

            return MethodType(report, self)
        return super().__getattr__(name)

    def recompile(self) -> Any:
        """Generate the flat forward from the graph. Calls have the original signature."""
        if "capture" in self.__dict__:
            self._graph.set_codegen(OwnCall(self._flat_inputs, self.capture.call.unflatten))
        code = super().recompile()
        as_first_called(type(self))
        # An attribute of the instance, so that code compiled for another graph is not used.
        self.__dict__["_flat_forward"] = type(self).forward
        if "capture" in self.__dict__:
            self._take_signature(self.capture.call.signature)
        return code

    def _take_signature(self, signature: inspect.Signature) -> None:
        def forward(self: UnitScaledModule, *args: Any, **kwargs: Any) -> Any:
            return self.run(args, kwargs)

        name = "self"
        while name in signature.parameters:
            name += "_"
        own = inspect.Parameter(name, inspect.Parameter.POSITIONAL_ONLY)
        parameters = [own, *signature.parameters.values()]
        forward.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        type(self).forward = forward  # type: ignore[method-assign]

    def flat_forward(self, *inputs: Any) -> tuple[Any, ...]:
        """The graph itself: flat inputs to flat results."""
        results: tuple[Any, ...] = self.__dict__["_flat_forward"](self._tree, *inputs)
        return results

    @contextlib.contextmanager
    def running(self, run: Callable[..., tuple[Any, ...]]) -> Iterator[None]:
        """A context in which ``run(tree, *flat inputs)`` replaces the graph."""
        own = self.__dict__["_flat_forward"]
        self.__dict__["_flat_forward"] = run
        try:
            yield
        finally:
            self.__dict__["_flat_forward"] = own

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One call with the original's arguments: by the graph where it holds for the call, else by
        the model's own code (``run_own``).
        """
        record_anew(self, args, kwargs)
        reason: Reason | None = self._changed()
        if reason is None:
            found = self.fitted(args, kwargs)
            if isinstance(found, list):
                return self.run_flat(found, args, kwargs)
            reason = found
        follow_class(self._tree, self._added())
        code = call_of(self._tree) if self.capture.has_hooks else self._tree.forward
        return self.run_own(reason, code, args, kwargs)

    def _added(self) -> dict[str, Any]:
        return properties_of(type(self), self._own_class)

    def fitted(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> list[Any] | OneModeOnly | Refusal:
        """The flat inputs of the graph for a call, or why the graph does not hold for it."""
        return self._other_mode() or self.capture.call.fitted(args, kwargs, self._attribute)

    def run_flat(self, flat: list[Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The call with these flat inputs."""
        call, results = self.capture.call, self.flat_forward(*flat)
        if call.effects:
            call.leave(results, self._tree, bind(call.signature, args, kwargs))
        return call.unflatten(results)

    def extra_repr(self) -> str:
        """What the model shows of itself."""
        return self._tree.extra_repr()

    def train(self, mode: bool = True) -> UnitScaledModule:
        """Switch every module, as the model's own ``train`` does."""
        self._tree.train(mode)
        self.training = self._tree.training
        return self

    def eval(self) -> UnitScaledModule:
        """Switch every module, as the model's own ``eval`` does."""
        self._tree.eval()
        self.training = self._tree.training
        return self

    def _other_mode(self) -> OneModeOnly | None:
        """The diagnostic for a mode for which the graph does not hold; None in its own mode."""
        mode = self.capture.mode
        if mode is None or self.training == (mode == "train"):
            return None
        notes = (d for d in self.capture.diagnostics if isinstance(d, OneModeOnly))
        other = "eval" if mode == "train" else "train"
        alone = OneModeOnly(mode=mode, other=other, reason="the other mode is another graph")
        return next(notes, alone)

    def _flat_inputs(self, values: Sequence[Any]) -> list[Any]:
        """Flat inputs from the values of the call's arguments, in the signature's order."""
        if (other := self._other_mode()) is not None:
            raise UnitifyError(other)
        return self.capture.call.flatten_values(values)

    @property
    def parts(self) -> Mapping[str, UnitScaledModule]:
        """The modules with one graph each, by name: for most models only this one."""
        return {"": self}

    @property
    def original(self) -> nn.Module:
        """The original model."""
        return self.capture.model

    @property
    def diagnostics(self) -> tuple[Diagnostic, ...]:
        """What was not kept, and what the user should know."""
        return self.about.diagnostics

    @property
    def recipe(self) -> Recipe | None:
        """The recipe of the casts; None without casts."""
        return self.about.recipe

    @property
    def scales(self) -> str:
        """The source of the plan's scales: "measured" or "analysis"; "" where unknown."""
        return self.about.scales

    @property
    def verification(self) -> Verification | None:
        """The result of verification, before the casts; None without one."""
        return self.about.verification

    @property
    def scheme(self) -> Mapping[str, Reparametrization]:
        """The constants that a scheme put into the graphs, by part; empty for "preserve"."""
        found = {name: part.capture.reparametrization for name, part in self.parts.items()}
        return {name: made for name, made in found.items() if made is not None}

    def to_inference(self) -> UnitScaledModule:
        """A copy for the forward pass only, whose cast weights are held as codes.

        A weight in an 8-bit format takes a quarter of the memory of float32. Results are bitwise
        those of this module. A weight with uses that are not cast (an embedding tied to the head)
        is held beside its codes. Codes are buffers, named after weight and format, so state dicts
        of the original no longer fit.
        """
        made: UnitScaledModule = hold_codes(copy.deepcopy(self).eval().requires_grad_(False))
        return made

    def to_frozen(self) -> UnitScaledModule:
        """A copy whose cast weights are codes where they take no gradient; the rest trains.

        For adapters on a frozen model: add them to the model, transform it, and train the copy.
        Outputs and gradients are bitwise those of this module; see ``to_inference`` for codes.
        """
        made: UnitScaledModule = hold_codes(copy.deepcopy(self))
        return made

    def get_submodule(self, target: str) -> nn.Module:
        """The original's submodule at this path; the module itself for ""."""
        return self._tree.get_submodule(target) if target else self

    def get_parameter(self, target: str) -> nn.Parameter:
        """The parameter of this name."""
        return self._tree.get_parameter(target)

    def get_buffer(self, target: str) -> torch.Tensor:
        """The buffer of this name."""
        return self._tree.get_buffer(target)

    def _is_frozen(self, target: str) -> bool:
        held = self._attribute(target)
        return isinstance(held, nn.Parameter) and not held.requires_grad

    def _used_parameters(self) -> list[nn.Parameter]:
        held = [self._attribute(str(n.target)) for n in self.graph.nodes if n.op == "get_attr"]
        return [p for p in held if isinstance(p, nn.Parameter)]

    def __copy__(self) -> UnitScaledModule:
        """Another module on the same tensors."""
        return self.__deepcopy__({id(t): t for t in (*self.parameters(), *self.buffers())})

    def __deepcopy__(self, memo: dict[int, Any]) -> UnitScaledModule:
        root = copy_of(self._tree, memo)
        follow_class(root, {})
        own_code_again(root)
        for target, constant in self.capture.constants.items():
            if isinstance(constant, nn.Module):
                root._modules[target] = constant
        graph = copy.deepcopy(self.graph)
        part = Part("", self.capture, self.plan, graph, choices=self._casts)
        made = UnitScaledModule(root, part, self.about)
        made.is_inference = self.is_inference
        if "_recorded_state" in self.__dict__:
            made.divide()
            made.watch(root, like=self)
        if not self.capture.has_hooks:
            share_hooks(root, made)
        memo[id(self)] = made
        made.take_after(self, memo)
        return made

    def take_after(self, other: UnitScaledModule, memo: dict[int, Any]) -> None:
        """Have the hooks of ``other``, and the properties that torch has put into its class.

        ``memo``: the copies by the identity of what was copied.
        """
        copy_hooks(other, self, memo, but=other._tree)
        if added := other._added():
            self.__class__ = type(type(self).__name__, (type(self),), added)

    def __reduce__(self) -> Any:
        raise UnitifyError(NotPickled(where=type(self.original).__name__))


#: Attributes of every ``fx.GraphModule``, and those that a plain module does not have.
_OF_EVERY_MODULE = frozenset(vars(fx.GraphModule(nn.Module(), fx.Graph())))
_OF_A_GRAPH = _OF_EVERY_MODULE - frozenset(vars(nn.Module()))
#: Attributes that this class adds to a plain module.
_OWN = frozenset(UnitScaledModule.__annotations__) | (
    frozenset(dir(UnitScaledModule)) - frozenset(dir(nn.Module))
)
