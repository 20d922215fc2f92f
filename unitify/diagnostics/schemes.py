"""U7: schemes for training from scratch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from unitify.diagnostics.diagnostic import Diagnostic


@dataclass(frozen=True)
class SchemeNeedsGraph(Diagnostic):
    """A unit scaling scheme needs one graph, and the model cannot be captured as one.

    A scheme multiplies every operation of a model by a constant. Python code between captured parts
    would stay as it is, and the whole would be neither model.

    Example: ``transform(model, scheme="unit")`` where ``forward`` branches on a tensor's contents.
    Fix: change the code that cannot be captured; or use ``scheme="preserve"``, which does not need
    the whole graph.
    """

    code: ClassVar[str] = "U701"
    why: ClassVar[str] = "a scheme needs the whole model as one graph: {reason}"
    fix: ClassVar[str] = "Change the named code, or leave out scheme="
    reason: str


@dataclass(frozen=True)
class TrainableGains(Diagnostic):
    """The scheme is u-μP, and norms of the model have gains that are trained.

    Blake et al. 2024 (arXiv 2407.17465) find that learning rates transfer over widths only where
    norms have no trainable gain.

    Example: ``transform(model, scheme="u-mup")`` with ``nn.LayerNorm(64)`` in the model.
    Fix: ``nn.LayerNorm(64, elementwise_affine=False)``, or ``requires_grad_(False)`` on the gains.
    """

    code: ClassVar[str] = "U702"
    why: ClassVar[str] = "{count} gains are trained, such as {first}"
    fix: ClassVar[str] = "Switch off their gradients, or build the norms without gains"
    is_loss: ClassVar[bool] = True
    first: str
    count: int


@dataclass(frozen=True)
class TiedRoles(Diagnostic):
    """The scheme is u-μP, and one parameter is both an embedding and a matrix.

    The two need learning rates with different powers of the width. The parameter gets that of an
    embedding. Each of its uses has its own right multiplier.

    Example: a language model whose head is its embedding.
    Fix: untie them, or choose by ``UMuP(roles={"embedding.weight": "readout"})``.
    """

    code: ClassVar[str] = "U703"
    why: ClassVar[str] = (
        "{name} is both an embedding and a matrix, and can have only one learning rate"
    )
    fix: ClassVar[str] = "Untie the two, or choose by roles={{...}}"
    is_loss: ClassVar[bool] = True
    name: str


@dataclass(frozen=True)
class DecayNotIndependent(Diagnostic):
    """A u-μP module is trained with a weight decay that is multiplied by the learning rate.

    Learning rates transfer over widths only where the decay of a step does not depend on them
    (Wortsman et al. 2023; u-μP requires it).

    Example: ``param_groups(module, torch.optim.Adam, lr=1.0, weight_decay=0.1)``; or AdamW with
    ``independent_decay=False``.
    Fix: AdamW with ``independent_decay`` left at its default, or no weight decay.
    """

    code: ClassVar[str] = "U704"
    why: ClassVar[str] = "the weight decay of {optimizer} depends on the learning rate"
    fix: ClassVar[str] = "Use AdamW with independent_decay=True, or weight_decay=0"
    is_loss: ClassVar[bool] = True
    optimizer: str


@dataclass(frozen=True)
class NoOriginal(Diagnostic):
    """The original of a module that a scheme made is no model of the user's class.

    Its weights are of unit variance, and the constants that go with them are in the graph alone.

    Example: ``unitify explain linear folder``, where the folder holds a model of ``scheme="unit"``.
    Fix: ``unitify.load(folder, model)``; the true model is ``module.capture.model``.
    """

    code: ClassVar[str] = "U705"
    why: ClassVar[str] = "{path} holds the model of a scheme, not one with weights of the original"
    fix: ClassVar[str] = "Use unitify.load, and module.capture.model for the true model"
    path: str
