"""The fingerprint of a plan, in state dicts of weights that mean something under it alone.

True weights are the original's, and their state dicts hold nothing else. Stored weights and codes
go with the scales at which they were stored; a state dict of them says which those are.
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
    """SHA-256 of all that stored weights depend on, 32 bytes: the scales of parameters.

    ``codes``: the choices by which weights became codes; their units then count, too.
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
    """Take the fingerprint out of ``state_dict``; is it the ``expected`` one (None for none)?

    ``names``: of the tensors that a module would load, below ``prefix``. A state dict with none of
    them holds no weights of it.

    Raises ``UnitifyError``: U017 for stored weights where true ones belong, or the reverse; U018
    for those of another plan.
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
