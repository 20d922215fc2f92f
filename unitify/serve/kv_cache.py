"""``kv_cache``: a cache of codes for a module that generates.

The recorded graph casts keys and values in front of each attention. A cache that holds codes at the
same scales gives a model that generates the same numbers, position by position.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from unitify.diagnostics import NoCache, UnitifyError, check_package
from unitify.module.assembly import parts_in
from unitify.module.unit_scaled import UnitScaledModule
from unitify.rulebook.rule_table import load_rules
from unitify.serve.cached import Cached, cached


def kv_cache(module: UnitScaledModule, *, rules: Iterable[Any] = ()) -> Any:
    """A new cache for ``module.generate(..., past_key_values=...)``, of codes of eight bits.

    ``module``: one whose recipe has a ``kv_cache``, which says the format, and whose model takes
    caches of transformers. ``cache.clipped``: the share of elements so far that were out of range.

    Raises ``UnitifyError``: U005 without transformers, U408 where the module has no such casts or
    its model no such cache.
    """
    check_package("transformers", "generation with a cache")
    from unitify.serve.coded_cache import CodedCache

    found = cached(parts_in(module), load_rules(rules))
    if not found:
        raise UnitifyError(NoCache(where=type(module).__name__, problem="its recipe casts no keys"))
    by_layer: dict[int, Cached] = {}
    for each in found:
        layer = getattr(module.get_submodule(each.attention), "layer_idx", None)
        if not isinstance(layer, int) or layer in by_layer:
            problem = f"{each.attention or 'its attention'} has no layer of a cache of its own"
            raise UnitifyError(NoCache(where=type(module).__name__, problem=problem))
        by_layer[layer] = each
    return CodedCache(module.config, by_layer)
