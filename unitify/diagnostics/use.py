"""U0: how unitify is called."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import ClassVar

from unitify.diagnostics.diagnostic import Diagnostic, UnitifyError


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
    implies its input; every other model needs them spelled out.

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
    """``scales="measured"`` has an empty list of batches.

    Example: ``transform(model, scales="measured", batches=[])``.
    Fix: pass at least one batch (a tuple of positional or a dict of keyword inputs), or leave
    ``batches`` out to measure on the example inputs.
    """

    code: ClassVar[str] = "U003"
    why: ClassVar[str] = "scales='measured' has no batch to measure on"
    fix: ClassVar[str] = "Pass batches=[inputs, ...] or leave it out"


@dataclass(frozen=True)
class ModelNeeded(Diagnostic):
    """A file of weights says nothing about the model that they belong to.

    A Hugging Face folder names its model in ``config.json``; a ``.safetensors`` or ``.pt``
    file holds tensors alone.

    Example: ``unitify convert weights.safetensors -o out``.
    Fix: ``unitify convert weights.safetensors --model my_package.models:build -o out``, where
    ``build()`` returns the model.
    """

    code: ClassVar[str] = "U004"
    why: ClassVar[str] = "{path} holds weights and does not name their model"
    fix: ClassVar[str] = "Pass --model package.module:factory"
    path: str


@dataclass(frozen=True)
class PackageMissing(Diagnostic):
    """A command needs an optional package that is not installed.

    Example: ``unitify convert folder -o out`` on a Hugging Face folder without ``transformers``.
    Fix: install the package that the message names.
    """

    code: ClassVar[str] = "U005"
    why: ClassVar[str] = "{purpose} needs the package {package}"
    fix: ClassVar[str] = "Install it: pip install {package}"
    package: str
    purpose: str


def check_package(package: str, purpose: str) -> None:
    """Raises ``UnitifyError`` (U005) where ``package``, which is for ``purpose``, is missing."""
    if importlib.util.find_spec(package.replace("-", "_")) is None:
        raise UnitifyError(PackageMissing(package=package, purpose=purpose))


@dataclass(frozen=True)
class UnknownCode(Diagnostic):
    """No diagnostic has this code.

    Example: ``unitify explain U999``.
    Fix: use a code as a message prints it.
    """

    code: ClassVar[str] = "U006"
    why: ClassVar[str] = "there is no diagnostic {asked}"
    fix: ClassVar[str] = "Known codes: {known}"
    asked: str
    known: str


@dataclass(frozen=True)
class OptimizerUnsupported(Diagnostic):
    """``unitify.optim.param_groups`` cannot carry hyperparameters over to this optimizer.

    Stored parameters and gradients differ from the true ones by powers of two, so that each
    hyperparameter is multiplied by its units. The table has most optimizers of torch.

    Example: ``param_groups(module, torch.optim.LBFGS)``.
    Fix: use one of the listed optimizers or a subclass of one; or pass ``units=``, an
    ``OptimizerUnits`` that lists the powers of fwd and bwd for each hyperparameter.
    """

    code: ClassVar[str] = "U007"
    why: ClassVar[str] = "{optimizer} cannot be kept exact: {reason}"
    fix: ClassVar[str] = "Use one of {known}, a subclass of one, or pass units="
    optimizer: str
    reason: str
    known: str


@dataclass(frozen=True)
class NothingTransformed(Diagnostic):
    """The module holds nothing that ``unitify.transform`` made.

    Example: ``unitify.monitor(model)`` with the original model in place of the transformed one;
    ``unitify.rebase_(module.to_inference(), …)``, whose weights are codes.
    Fix: pass the result of ``transform``, or a module around it.
    """

    code: ClassVar[str] = "U009"
    why: ClassVar[str] = "{module} holds no transformed module"
    fix: ClassVar[str] = "Pass the result of unitify.transform, or a module that holds it"
    module: str


@dataclass(frozen=True)
class SettingsInvalid(Diagnostic):
    """``[tool.unitify.check]`` has an unknown key, or a value that its key cannot have.

    Example: ``flush = 0.1`` in place of ``flushed = 0.1``.
    Fix: use the keys that docs/check.md lists.
    """

    code: ClassVar[str] = "U011"
    why: ClassVar[str] = "the settings of unitify check are not valid: {problem}"
    fix: ClassVar[str] = "Use the keys that docs/check.md lists"
    problem: str


@dataclass(frozen=True)
class LossUnusable(Diagnostic):
    """``loss_fn`` does not return a loss.

    It takes the model's output and returns a tensor of one number that depends on it. It is also
    called with outputs drawn from their predicted moments.

    Example: ``transform(model, x, loss_fn=lambda output: output.detach().sum())``.
    Fix: return ``criterion(output, target)`` as training has it, without ``.item()``.
    """

    code: ClassVar[str] = "U012"
    why: ClassVar[str] = "loss_fn gives no loss: {problem}"
    fix: ClassVar[str] = "Return a tensor of one number that depends on the output"
    problem: str


@dataclass(frozen=True)
class AlreadyTransformed(Diagnostic):
    """The model is a transformed module, or has one among its submodules.

    A transformed module has scales in its graph already. A second transform would take these for
    operations of the model.

    Example: ``transform(transform(model, x), x)``.
    Fix: transform ``module.original``. In a model with transformed submodules, transform the other
    submodules one by one, or the original model.
    """

    code: ClassVar[str] = "U016"
    why: ClassVar[str] = "{module} is a transformed module"
    fix: ClassVar[str] = "Use the original model: module.original"
    module: str


@dataclass(frozen=True)
class OtherWeights(Diagnostic):
    """A state dict holds true weights where stored ones belong, or stored ones where true ones do.

    A module with ``weights="stored"`` holds each parameter divided by its scale, and one that
    ``to_inference`` made holds codes. Their state dicts have an entry ``unitify_fingerprint``;
    state dicts of true weights, of the original as of a module, have none.

    Example: ``module.load_state_dict(model.state_dict())`` with
    ``module = transform(model, weights="stored")``.
    Fix: ``module.load_original_state_dict`` takes true weights, and ``module.original_state_dict``
    gives them; or transform with true weights, the default.
    """

    code: ClassVar[str] = "U017"
    why: ClassVar[str] = "the module holds {held} weights, and the state dict has {given} ones"
    fix: ClassVar[str] = "Use original_state_dict and load_original_state_dict between the two"
    held: str
    given: str


@dataclass(frozen=True)
class OtherPlan(Diagnostic):
    """A state dict holds stored weights, or codes, of another plan than the module's.

    Under other scales the same numbers are other weights.

    Example: a state dict of ``transform(model, weights="stored")``, saved before training was
    resumed with new scales.
    Fix: rebuild the module with the plan that the weights were saved with
    (``unitify.rebuild(model, state_dict, plan)``); or exchange true weights.
    """

    code: ClassVar[str] = "U018"
    why: ClassVar[str] = "the state dict was stored under another plan than the module's"
    fix: ClassVar[str] = "Use unitify.rebuild with its plan, or original_state_dict"


@dataclass(frozen=True)
class ParametersRenamed(Diagnostic):
    """A module with stored weights has parameters under other names than its plan.

    A wrapper that replaces parameters (FSDP's flat ones, adapters) hides the scale of each.

    Example: ``param_groups(module, AdamW)`` after ``FullyShardedDataParallel(module)`` with
    ``module = transform(model, weights="stored")``.
    Fix: transform with true weights, the default: any optimizer then takes
    ``module.parameters()`` as they are.
    """

    code: ClassVar[str] = "U019"
    why: ClassVar[str] = "the module lacks {count} stored parameters of the plan, such as {name}"
    fix: ClassVar[str] = 'Transform with weights="true", the default'
    count: int
    name: str


@dataclass(frozen=True)
class NothingGathered(Diagnostic):
    """No weight of a module can be gathered as codes.

    Codes can replace a weight only where every use of it is one cast to an 8-bit format by a
    constant.

    Example: ``gather_codes_(transform(model))``, without a recipe; or with ``fp8-amax``, whose
    scales are found at each call.
    Fix: transform with ``recipe="fp8"``, and leave contractions out of the recipe's ``exclude``.
    """

    code: ClassVar[str] = "U020"
    why: ClassVar[str] = "no weight is used only through one cast to an 8-bit format by a constant"
    fix: ClassVar[str] = 'Transform with recipe="fp8"'


@dataclass(frozen=True)
class GatheredCodesOld(Diagnostic):
    """New scales would leave old ones in the codes that FSDP2 gathers.

    ``gather_codes_`` fixes the scale by which each process rounds its shard. A rebase would give
    casts another one, and weights would be rounded twice.

    Example: ``rebase_(module)`` after ``gather_codes_(module)``.
    Fix: call ``rebase_`` before ``gather_codes_``, or transform the model again.
    """

    code: ClassVar[str] = "U021"
    why: ClassVar[str] = "its weights are gathered as codes, with the scales of before"
    fix: ClassVar[str] = "Call rebase_ before gather_codes_, or transform the model again"
