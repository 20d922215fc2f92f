"""The fingerprint of a plan, in state dicts of stored weights and codes.

Stored weights and codes are valid only with the scales at which they were stored. Their state dict
identifies these scales by a fingerprint. State dicts of true weights have none.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, MutableMapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from unitify.diagnostics import OtherPlan, OtherWeights, UnitifyError
from unitify.plan.scale_plan import ScalePlan
from unitify.recipe.choices import Choice

#: The entry of a state dict that holds the fingerprint.
KEY = "unitify_fingerprint"


def fingerprint(plan: ScalePlan, codes: Iterable[Choice] = ()) -> Tensor:
    """SHA-256, as 32 bytes, of the scales of parameters, on which stored weights depend.

    ``codes``: the choices by which weights became codes. Their units are included, too.
    """
    decides: dict[str, Any] = {
        "parameters": {n: list(s.exponents) for n, s in plan.parameters.items()}
    }
    if cast := [asdict(choice) for choice in codes if choice.is_cast]:
        units = {**plan.values, **plan.units}
        decides["units"] = {n: list(s.exponents) for n, s in units.items()}
        decides["codes"] = cast
    text = json.dumps(decides, sort_keys=True)
    digest = hashlib.sha256(text.encode()).digest()
    return torch.tensor(list(digest), dtype=torch.uint8)


def check_fingerprint(
    expected: Tensor | None, state_dict: MutableMapping[str, Any], prefix: str, names: Iterable[str]
) -> None:
    """Remove the fingerprint from ``state_dict``, and compare it with ``expected`` (None: none).

    ``names``: the tensors that a module would load, below ``prefix``. A state dict without any of
    them is not checked.

    Raises ``UnitifyError``: U017 for stored weights instead of true ones, or the reverse; U018 for
    those of another plan.
    """
    found = state_dict.pop(prefix + KEY, None)
    if expected is None and found is None:
        return
    if found is None:
        if any(prefix + name in state_dict for name in names):
            raise UnitifyError(OtherWeights(held="stored", given="true"))
    elif expected is None:
        raise UnitifyError(OtherWeights(held="true", given="stored"))
    elif not torch.equal(expected, found.cpu()):
        raise UnitifyError(OtherPlan())
