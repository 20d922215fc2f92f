"""``UnitScaledModule``: the transformed model, an ``fx.GraphModule`` on stored values."""

from __future__ import annotations

import contextlib
import copy
import importlib
import inspect
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import fx, nn

from unitify.capture.signature import bind
from unitify.capture.tree import copy_of, share_tables
from unitify.capture.watching import share_hooks
from unitify.capture.whole import Capture
from unitify.diagnostics import (
    AttributeTurned,
    Diagnostic,
    KeysDiffer,
    NotPickled,
    OneModeOnly,
    UnitifyError,
)
from unitify.module.fingerprint import KEY, check_fingerprint, fingerprint
from unitify.module.folding import fold
from unitify.module.interpreted import OwnCall
from unitify.module.knobs import Knobs
from unitify.module.own_code import leave_graph, run_own_code
from unitify.module.tied import check_ties, tied_again, ties_of
from unitify.plan.scale_plan import Scale, ScalePlan
from unitify.recipe.choices import Choice
from unitify.recipe.recipe import Recipe
from unitify.reparametrisation import Reparametrisation
from unitify.verification import Verification


class UnitScaledModule(fx.GraphModule):
    """The same function and the same gradients as the model, with tensors near unit scale.

    Called like the original; returns the original's type. Parameters have its names. Parameters,
    inputs, outputs and their gradients are true. With ``plan.weights`` "stored" a parameter p is
    held as p / ``plan.parameters[name].fwd`` and receives the gradient g / ``.bwd``.
    """

    #: What ``capture`` knows such a module by.
    IS_TRANSFORMED: ClassVar[bool] = True
    plan: ScalePlan
    capture: Capture
    diagnostics: tuple[Diagnostic, ...]
    #: What is cast, and what verification found before the casts; None for neither.
    recipe: Recipe | None = None
    _casts: tuple[Choice, ...] = ()
    #: Are cast weights held as codes, for the forward pass alone?
    is_inference: bool = False
    verification: Verification | None = None
    #: What the graph runs on: the modules, parameters and buffers, and nothing else.
    _tree: nn.Module

    def __init__(
        self,
        root: nn.Module,
        graph: fx.Graph,
        plan: ScalePlan,
        capture: Capture,
        diagnostics: tuple[Diagnostic, ...] = (),
    ) -> None:
        super().__init__(nn.Module(), fx.Graph(), class_name="UnitScaledModule")
        self._take_tree(root)
        self.plan = plan
        self.capture = capture
        self.diagnostics = diagnostics
        self.graph = graph

    def _take_tree(self, root: nn.Module) -> None:
        """The modules, parameters and buffers of ``root``, in its order; not copies."""
        share_tables(root, self)
        self.__dict__["_tree"] = root
        self.register_load_state_dict_post_hook(tied_again)  # type: ignore[no-untyped-call]
        self.training = root.training

    def __setattr__(self, name: str, value: Any) -> None:
        """What this class has is its own, also where the model has a child of that name."""
        if name in _OWN:
            object.__setattr__(self, name, value)
            return
        if name != "training" and self._is_model_s(name):
            setattr(self._tree, name, value)
            return
        super().__setattr__(name, value)
        if name == "training" and "_tree" in self.__dict__:
            self._tree.training = value

    def _is_model_s(self, name: str) -> bool:
        """Is it an attribute of the model, neither one of torch's own nor a tensor or submodule?"""
        tree = self.__dict__.get("_tree")
        return tree is not None and name in vars(tree) and name not in _OF_EVERY_MODULE

    def __getattr__(self, name: str) -> Any:
        """What the model has under a name; ``report`` where it has nothing of that name."""
        if self._is_model_s(name):
            return vars(self._tree)[name]
        # Not while the model's own are registered, which asks whether a name is free.
        if name == "report" and "diagnostics" in self.__dict__:
            held = (self._modules, self._parameters, self._buffers)
            if not any(name in table for table in held):
                # It stands behind this file.
                return importlib.import_module("unitify.report.of_module").report.__get__(self)
        return super().__getattr__(name)

    def recompile(self) -> Any:
        """Generate the flat forward from the graph; calls go through the original signature."""
        if "capture" in self.__dict__:
            self._graph.set_codegen(OwnCall(self._flat_inputs, self.capture.call.unflatten))
        code = super().recompile()
        # An attribute of the instance: code that was compiled around another graph is then not
        # used for this one.
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
        """Inside, ``run(tree, *flat inputs)`` takes the place of the graph."""
        own = self.__dict__["_flat_forward"]
        self.__dict__["_flat_forward"] = run
        try:
            yield
        finally:
            self.__dict__["_flat_forward"] = own

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One call with the original's arguments.

        Raises ``UnitifyError``: U104 for inputs of another form, U103 in the mode that the graph
        does not hold for.
        """
        if (turned := self._turned()) is not None:
            leave_graph(turned, self.is_inference)
            tree = self._tree
            code = tree.__call__ if self.capture.has_hooks else tree.forward
            return run_own_code(tree, code, self.plan.parameters, args, kwargs)
        self._check_mode()
        return self.run_flat(self.capture.flat_inputs(args, kwargs), args, kwargs)

    def run_flat(self, flat: list[Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The call of which ``flat`` are the flat inputs."""
        call, results = self.capture.call, self.flat_forward(*flat)
        if call.effects:
            call.leave(results, self._tree, bind(call.signature, args, kwargs))
        return call.unflatten(results)

    def train(self, mode: bool = True) -> UnitScaledModule:
        """Switch every module, as the model's own ``train`` does."""
        self.training = self._tree.train(mode).training
        return self

    def eval(self) -> UnitScaledModule:
        """Switch every module, as the model's own ``eval`` does."""
        self._tree.eval()
        self.training = self._tree.training
        return self

    def watch(self, tree: nn.Module) -> None:
        """From now on, attributes of ``tree`` are to stay what the graph was recorded with."""
        left = [effect.location for effect in self.capture.call.effects]
        reads = [where for where in self.capture.reads if not any(map(where.leads_to, left))]
        self.__dict__["_knobs"] = Knobs(tree, reads)

    def _turned(self) -> AttributeTurned | None:
        """What was turned since then, if anything; compiled code is not asked at each call."""
        knobs: Knobs | None = self.__dict__.get("_knobs")
        if knobs is None or torch.compiler.is_compiling():
            return None
        found = knobs.turned()
        return None if found is None else AttributeTurned(attribute=str(found))

    def _check_mode(self) -> None:
        mode = self.capture.mode
        if mode is not None and self.training != (mode == "train"):
            notes = (d for d in self.capture.diagnostics if isinstance(d, OneModeOnly))
            other = "eval" if mode == "train" else "train"
            alone = OneModeOnly(mode=mode, other=other, reason="the other mode is another graph")
            raise UnitifyError(next(notes, alone))

    def _flat_inputs(self, values: Sequence[Any]) -> list[Any]:
        """Flat inputs from the values of the captured call's arguments, in their order."""
        self._check_mode()
        return self.capture.call.flatten_values(values)

    def flat_call(self, inputs: list[Any]) -> Any:
        """From flat inputs to the original's type of result, in whatever mode the graph is."""
        return self.capture.call.unflatten(self.flat_forward(*inputs))

    @property
    def parts(self) -> Mapping[str, UnitScaledModule]:
        """The modules that hold one graph each, by name: this one alone, for most models."""
        return {"": self}

    @property
    def original(self) -> nn.Module:
        """The model that this module stands for."""
        return self.capture.model

    @property
    def scheme(self) -> Mapping[str, Reparametrisation]:
        """The constants that a scheme put into the graphs, by part; empty for "preserve"."""
        found = {name: part.capture.reparametrisation for name, part in self.parts.items()}
        return {name: made for name, made in found.items() if made is not None}

    @property
    def casts(self) -> tuple[Choice, ...]:
        """What the recipe does with every value, and why; empty without a recipe."""
        return self._casts

    def take_casts(
        self,
        graph: fx.Graph,
        recipe: Recipe,
        choices: tuple[Choice, ...],
        constants: Mapping[str, torch.Tensor],
    ) -> None:
        """Run ``graph``, this module's own with the casts of ``choices``, from now on.

        ``constants``: what it reads beside the module's own attributes, by name.
        """
        for name, constant in constants.items():
            self.register_buffer(name, constant, persistent=False)
        self.recipe, self._casts = recipe, choices
        self.graph = graph

    def to_inference(self) -> UnitScaledModule:
        """A copy for the forward pass alone, whose cast weights are held as codes.

        A weight in an 8-bit format takes a quarter of the memory of float32. Results are those of
        this module to the bit. Weights that are also used as they are (an embedding that is the
        head, too) are held beside their codes. Codes are buffers, named after weight and format;
        state dicts of the original do not fit any more.
        """
        made = copy.deepcopy(self).eval().requires_grad_(False)
        made.is_inference = True
        parts = list(made.parts.values())
        used = {id(p) for part in parts for p in part._used_parameters()}
        folded = [fold(p.graph, p._attribute, p._is_parameter) for p in parts]
        for part, graph in zip(parts, folded, strict=True):
            for name, codes in graph.codes.items():
                path, _, own = name.rpartition(".")
                part.get_submodule(path).register_buffer(own, codes)
            part.graph, part.is_inference = graph.graph, True
        used -= {id(p) for part in parts for p in part._used_parameters()}
        for child in made.modules():
            for name in [n for n, p in child._parameters.items() if id(p) in used]:
                child._parameters[name] = None
        return made

    def get_submodule(self, target: str) -> nn.Module:
        """The original's submodule of this path; the module itself for ""."""
        return self._tree.get_submodule(target) if target else self

    def get_parameter(self, target: str) -> nn.Parameter:
        """The parameter of this name."""
        return self._tree.get_parameter(target)

    def get_buffer(self, target: str) -> torch.Tensor:
        """The buffer of this name."""
        return self._tree.get_buffer(target)

    def _attribute(self, target: str) -> Any:
        return operator.attrgetter(target)(self._tree)

    def _is_parameter(self, target: str) -> bool:
        return isinstance(self._attribute(target), nn.Parameter)

    def _used_parameters(self) -> list[nn.Parameter]:
        held = [self._attribute(str(n.target)) for n in self.graph.nodes if n.op == "get_attr"]
        return [p for p in held if isinstance(p, nn.Parameter)]

    def _fingerprint(self) -> torch.Tensor | None:
        """Of stored weights and of codes; None where all that is held is true."""
        if self.is_inference:
            return fingerprint(self.plan, self.casts)
        return fingerprint(self.plan) if self.plan.weights == "stored" else None

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        held = self._fingerprint()
        if held is not None:
            destination[prefix + KEY] = held

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, *args: Any
    ) -> None:
        """Of this module; torch calls it for each submodule in turn.

        Raises ``UnitifyError``: U017 or U018 for weights that mean something else here.
        """
        check_fingerprint(self._fingerprint(), state_dict, prefix, self.plan.parameters)
        ties = ties_of(self._tree)
        if local_metadata.get("assign_to_params_buffers"):
            check_ties(ties, state_dict, prefix)
        held = {first: self._tree.get_parameter(first) for first in ties.values()}
        self.__dict__["_tied"] = ties, held
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def original_state_dict(self) -> dict[str, torch.Tensor]:
        """A copy of the true weights and buffers under the original's names.

        With true weights ``state_dict`` holds the same. With a scheme the original is the true
        model that the scheme made, ``capture.model``.

        Raises ``UnitifyError`` (U603) after ``to_inference``, where weights are codes.
        """
        self._check_weights()
        return {
            name: tensor * self._scale(name).fwd if self._is_scaled(name) else tensor.clone()
            for name, tensor in self.state_dict().items()
            if name != KEY
        }

    def load_original_state_dict(
        self, state_dict: Mapping[str, torch.Tensor], strict: bool = True
    ) -> None:
        """Take over true weights and buffers, as the original would.

        With true weights ``load_state_dict`` does the same.

        Raises ``UnitifyError`` (U603) where names or shapes differ, and after ``to_inference``.
        """
        self._check_weights()
        stored = {
            name: tensor / self._scale(name).fwd if self._is_scaled(name) else tensor
            for name, tensor in state_dict.items()
        }
        held = self._fingerprint()
        if held is not None:
            stored[KEY] = held
        try:
            self.load_state_dict(stored, strict=strict)
        except RuntimeError as error:
            problem = " ".join(str(error).split())
            raise UnitifyError(KeysDiffer(problem=problem)) from None

    def _check_weights(self) -> None:
        if self.is_inference:
            problem = "the module was made by to_inference and holds codes in place of weights"
            raise UnitifyError(KeysDiffer(problem=problem))

    def _is_scaled(self, name: str) -> bool:
        return self._scale(name).fwd != 1.0

    def _scale(self, name: str) -> Scale:
        return self.plan.parameters.get(name, Scale())

    def __deepcopy__(self, memo: dict[int, Any]) -> UnitScaledModule:
        root = copy_of(self._tree, memo)
        for target, constant in self.capture.constants.items():
            if isinstance(constant, nn.Module):
                root._modules[target] = constant
        graph = copy.deepcopy(self.graph)
        made = UnitScaledModule(root, graph, self.plan, self.capture, self.diagnostics)
        made.recipe, made._casts, made.verification = self.recipe, self._casts, self.verification
        made.is_inference = self.is_inference
        if "_knobs" in self.__dict__:
            made.watch(root)
        if not self.capture.has_hooks:
            share_hooks(root, made)
        memo[id(self)] = made
        return made

    def __reduce__(self) -> Any:
        raise UnitifyError(NotPickled(where=type(self.original).__name__))


#: Attributes that every module has.
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
#: Attributes that a module of this class has and a plain one has not.
_OWN = frozenset(UnitScaledModule.__annotations__) | (
    frozenset(dir(UnitScaledModule)) - frozenset(dir(nn.Module))
)
