"""Which operand is cast at which true scale, for the products that a recipe casts.

The bridge from a plan to the analysis of noise: takes formats by operation, gives ``OperandCast``
by place. A product's operand is cast where it is near unit RMS, be it stored there or not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from unitify.capture.whole import Capture
from unitify.formats.table import FORMATS
from unitify.noise.cast_error import OperandCast
from unitify.noise.moments import Place
from unitify.operations.centring import centring
from unitify.operations.products import product_operands
from unitify.operations.rule_table import RuleTable
from unitify.operations.schema import operation_name
from unitify.plan.scale_plan import ScalePlan


def operand_casts(
    capture: Capture,
    plan: ScalePlan,
    rules: RuleTable,
    formats: Mapping[str, str],
    exponents: Mapping[Place, int] | None = None,
    means: Mapping[str, tuple[float, ...]] | None = None,
) -> dict[Place, OperandCast]:
    """The casts of the products that ``formats`` names, by (operation, argument, index).

    ``formats``: name of the operation → name of the format of its operands. ``exponents``: by
    place, log2 of what an operand is divided by before it is rounded (headroom). ``means``: by
    name of an operation, of each channel of the operand that is centred.
    """
    found: dict[Place, OperandCast] = {}
    for node in capture.graph.nodes:
        rule = rules.get(operation_name(node))
        if node.name not in formats or rule is None:
            continue
        mean = (means or {}).get(node.name, ())
        how = centring(rule, node) if mean else None
        for name, index, operand in product_operands(rule, node):
            place = node.name, name, index
            exponent = plan.unit(operand.name).exponents[0] + (exponents or {}).get(place, 0)
            cast = OperandCast(FORMATS[formats[node.name]], math.ldexp(1.0, exponent))
            if how is not None and name == how.operand:
                cast = replace(cast, mean=mean, centring=how)
            found[place] = cast
    return found
