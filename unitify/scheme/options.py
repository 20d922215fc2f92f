"""``UnitScheme`` and ``UMuP``: a unit scaling scheme and its options, as data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from unitify.diagnostics import UnitifyError, UnknownOption

#: The values of each field that takes one of a few words.
CHOICES: Mapping[str, tuple[str, ...]] = {
    "init": ("normal", "normalize", "keep"),
    "biases": ("zero", "keep"),
    "residual": ("running-mean", "fixed", "u-mup", "default"),
    "logits": ("1/sqrt(d)", "1/d"),
    "attention": ("length", "none"),
}
#: The roles of a parameter.
ROLES = ("embedding", "hidden", "readout", "gain", "bias", "other")


@dataclass(frozen=True, kw_only=True)
class UnitScheme:
    """Unit scaling (Blake et al. 2023, arXiv 2303.11257), as a true model.

    - ``init``: weights are drawn from N(0, 1) ("normal"), or divided by their RMS ("normalize"), or
      kept ("keep"); ``biases``: "zero" or "keep". Gains become one. Parameters of no known role
      keep their values
    - ``residual``: weights of x + f(x): "running-mean" gives every branch and the input an equal
      share of the variance; "fixed" gives a branch the share ``tau`` (an attention
      ``attention_tau``); "u-mup" is the rule of u-μP; "default" leaves the sum as it is
    - ``logits``: q·k is multiplied by "1/sqrt(d)" or "1/d"
    - ``attention``: "length" brings its result to unit RMS for the example's length, or for
      ``tokens``, the mean number of tokens without padding; "none" does not. The multiplier is a
      constant of the graph, so results do not depend on how many tokens are decoded at a time
    - ``alpha_…``: multipliers, one by default: of embeddings; of the operands of an activation
      function, an attention's softmax and the loss's softmax; of residual branches relative to the
      embedding, of attention branches relative to the others; of the readout
    - ``activation_alphas``: pattern of module paths or values → ``alpha_ffn_act`` there
    - ``roles``: pattern of parameter names → role, where the graph does not determine it;
      ``depth``: the number of residual branches of a stack, if not that of the graph

    Raises ``UnitifyError`` (U001) for invalid values.
    """

    name: ClassVar[str] = "unit"

    init: str = "normal"
    biases: str = "zero"
    residual: str = "running-mean"
    tau: float = 0.5
    attention_tau: float | None = None
    logits: str = "1/sqrt(d)"
    attention: str = "length"
    tokens: float | None = None
    alpha_emb: float = 1.0
    alpha_ffn_act: float = 1.0
    alpha_attn_softmax: float = 1.0
    alpha_res: float = 1.0
    alpha_res_attn_ratio: float = 1.0
    alpha_loss_softmax: float = 1.0
    alpha_out: float = 1.0
    activation_alphas: Mapping[str, float] = field(default_factory=dict)
    roles: Mapping[str, str] = field(default_factory=dict)
    depth: int | None = None

    def __post_init__(self) -> None:
        problems = [
            UnknownOption(option=name, value=str(getattr(self, name)), choices=", ".join(allowed))
            for name, allowed in CHOICES.items()
            if getattr(self, name) not in allowed
        ]
        problems += [
            UnknownOption(option=f"roles[{pattern!r}]", value=role, choices=", ".join(ROLES))
            for pattern, role in self.roles.items()
            if role not in ROLES
        ]
        positive = [f.name for f in dataclasses.fields(self) if f.name.startswith("alpha_")]
        numbers = {n: getattr(self, n) for n in (*positive, "tokens", "depth")}
        numbers |= {f"activation_alphas[{n!r}]": v for n, v in self.activation_alphas.items()}
        problems += [
            UnknownOption(option=name, value=str(value), choices="positive numbers")
            for name, value in numbers.items()
            if value is not None and not (value > 0 and math.isfinite(value))
        ]
        problems += [
            UnknownOption(option=name, value=str(value), choices="numbers between 0 and 1")
            for name in ("tau", "attention_tau")
            if (value := getattr(self, name)) is not None and not 0 < value < 1
        ]
        if problems:
            raise UnitifyError(*problems)

    def as_table(self) -> dict[str, Any]:
        """The fields that differ from their defaults, as plain data."""
        plain = type(self)()
        held = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {
            name: dict(value) if isinstance(value, Mapping) else value
            for name, value in held.items()
            if value != getattr(plain, name)
        }


@dataclass(frozen=True, kw_only=True)
class UMuP(UnitScheme):
    """u-μP (Blake et al. 2024, arXiv 2407.17465): unit scaling whose learning rate transfers.

    The options of ``UnitScheme``. The readout is multiplied by 1/fan_in, and logits of an attention
    by 1/d. ``unitify.optim.param_groups`` multiplies learning rates by factors of width and depth.
    """

    name: ClassVar[str] = "u-mup"

    residual: str = "u-mup"
    logits: str = "1/d"


SCHEMES: Mapping[str, type[UnitScheme]] = {kind.name: kind for kind in (UnitScheme, UMuP)}


def read_scheme(given: str | UnitScheme) -> UnitScheme | None:
    """The scheme of a name, or ``given`` itself; None for "preserve".

    Raises ``UnitifyError`` (U001) for anything else.
    """
    if isinstance(given, UnitScheme):
        return given
    if given == "preserve":
        return None
    if given not in SCHEMES:
        choices = ", ".join(["preserve", *SCHEMES, "unitify.UnitScheme(…)", "unitify.UMuP(…)"])
        raise UnitifyError(UnknownOption(option="scheme", value=str(given), choices=choices))
    return SCHEMES[given]()
