"""Weights that FSDP2 gathers as codes: a quarter of the bytes, and no amax to reduce.

Each process rounds its shard of a cast weight before the all-gather. The scale is a constant of the
plan, so processes need not agree on a largest element. The cast then leaves the gathered numbers
unchanged. Shards, gradients and optimizer states keep their types.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.utils import _pytree as pytree

from unitify.diagnostics import GatheredCodesOld, NothingGathered, NothingTransformed, UnitifyError
from unitify.formats.table import FORMATS
from unitify.module.unit_scaled import UnitScaledModule
from unitify.rulebook.schema import named_arguments, operation_name
from unitify.runtime.scaled_mm import decode, encode

#: The rounding of a weight: the name of a format, and the exponent (log2) of its scale.
Rounding = tuple[str, int]

_MATMULS = ("unitify.fp8_linear.default", "unitify.fp8_linear.watched")
_CASTS = ("unitify.cast.default", "unitify.cast.watched")
#: The operations by which ``fully_shard`` makes a shard. Their results keep the operand's rounding.
_OF_SHARDS = frozenset(
    getattr(torch.ops.aten, name)
    for name in (
        "detach", "clone", "empty_like", "new_zeros", "slice", "split", "view", "as_strided",
        "copy_", "_to_copy", "_pin_memory",
    )
)  # fmt: skip


def gather_codes_(module: UnitScaledModule) -> UnitScaledModule:
    """Let a later ``fully_shard`` of ``module`` gather codes of the weights that it casts.

    These are weights whose uses all are the same cast to an 8-bit format. Results and
    gradients are bitwise the same. Call ``rebase_`` before this; afterwards it is refused (U021).

    Raises ``UnitifyError``: U020 where there is no such weight, U009 for a module that is not
    transformed.
    """
    if not isinstance(module, UnitScaledModule):
        raise UnitifyError(NothingTransformed(module=type(module).__name__))
    uses: dict[nn.Parameter, set[Rounding | None]] = {}
    for part in module.parts.values():
        for node in part.graph.nodes:
            held = part._attribute(str(node.target)) if node.op == "get_attr" else None
            if isinstance(held, nn.Parameter):
                uses.setdefault(held, set()).update(_rounding(node, user) for user in node.users)
    made: dict[Any, nn.Parameter] = {}
    for parameter, roundings in uses.items():
        if len(roundings) == 1 and (rounding := next(iter(roundings))) is not None:
            weight = GatheredAsCodes(parameter.detach(), *rounding)
            made[parameter] = nn.Parameter(weight, parameter.requires_grad)
    if not made:
        raise UnitifyError(NothingGathered(where=type(module).__name__))
    for child in module.modules():
        for name, held in child._parameters.items():
            child._parameters[name] = made.get(held, held)
    return module


def check_not_gathered(module: UnitScaledModule) -> None:
    """Raise ``UnitifyError`` (U021) for a module with weights of ``gather_codes_``."""
    for parameter in module.parameters():
        if isinstance(getattr(parameter, "_local_tensor", parameter), GatheredAsCodes):
            raise UnitifyError(GatheredCodesOld(where=type(module.original).__name__))


def _rounding(weight: fx.Node, user: fx.Node) -> Rounding | None:
    """How ``user`` rounds ``weight``; None where it does not."""
    given = named_arguments(user) if operation_name(user) in (*_MATMULS, *_CASTS) else {}
    if operation_name(user) in _MATMULS and weight not in (given["x"], given["bias"]):
        return given["forward"], given["weight_exponent"]
    if operation_name(user) in _CASTS and not given["amax"] and given["saturate"]:
        format = FORMATS.get(given["forward"])
        if format is not None and format.dtype is not None:
            return format.name, given["forward_exponent"]
    return None


class GatheredAsCodes(Tensor):
    """A weight, or a shard of one, of which ``fully_shard`` gathers codes.

    ``held``: its numbers. ``format``, ``exponent``: their rounding for the all-gather.
    """

    held: Tensor
    rounding: Rounding

    @staticmethod
    def __new__(cls, held: Tensor, format: str, exponent: int) -> GatheredAsCodes:
        """A view of ``held``."""
        made: GatheredAsCodes = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(),
            dtype=held.dtype, layout=held.layout, device=held.device,
            requires_grad=held.requires_grad,
        )  # fmt: skip
        made.held, made.rounding = held, (format, exponent)
        return made

    def __init__(self, *_: Any) -> None:
        super().__init__()

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"GatheredAsCodes({self.held}, {self.rounding})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        rounding: Rounding | None = None

        def opened(value: Any) -> Any:
            nonlocal rounding
            if not isinstance(value, cls):
                return value
            rounding = rounding or value.rounding
            return value.held

        given = pytree.tree_map(opened, (args, kwargs or {}))
        result = func(*given[0], **given[1])
        if func._schema.is_mutable and args and isinstance(args[0], cls):
            return args[0]
        if func.overloadpacket not in _OF_SHARDS or rounding is None:
            return result
        return pytree.tree_map_only(Tensor, lambda t: cls(t, *rounding), result)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A file holds the plain tensor."""
        return self.held.__reduce_ex__(protocol)

    def fsdp_pre_all_gather(
        self, mesh: Any, outer_size: Any, outer_stride: Any, module: Any, mp_policy: Any
    ) -> tuple[tuple[Tensor, ...], Any]:
        """The codes to send, as bytes, with the same number of rows in every process."""
        format, exponent = self.rounding
        # The type in which FSDP2 would send it, then rounded.
        sent = self.held.to(mp_policy.param_dtype or self.dtype)
        codes = encode(sent, FORMATS[format], exponent).view(torch.uint8)
        missing = -(-outer_size[0] // mesh.size()) - codes.shape[0]
        if missing:
            codes = torch.cat([codes, codes.new_zeros(missing, *codes.shape[1:])])
        return (codes.contiguous(),), None

    def fsdp_post_all_gather(
        self, gathered: tuple[Tensor, ...], _: Any, dtype: torch.dtype, *, out: Any = None
    ) -> Any:
        """The weight of the gathered codes."""
        format, exponent = self.rounding
        codes = gathered[0].view(FORMATS[format].dtype)  # type: ignore[arg-type]
        whole = decode(codes, dtype, exponent)
        if out is None:
            return whole, (whole,)
        with torch.no_grad(), _unsafe_preserve_version_counter(out):
            out.copy_(whole[: out.shape[0]])
        return None
