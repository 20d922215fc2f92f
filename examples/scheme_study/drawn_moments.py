"""Moments of a graph as a scheme would initialize it: of weights that nobody has drawn.

Takes a capture and what its parameters are for; gives moments of values and gradients. As of a
weight only mean and RMS are known, no array is touched, whatever the size of the model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import fx

from unitify.analysis.forward import ForwardMoments, Results
from unitify.analysis.moments import Moment, gaussian
from unitify.capture.whole import Capture
from unitify.reparametrization import ParameterRole
from unitify.rulebook.dimensions import shape_of
from unitify.rulebook.laws import is_scalable
from unitify.rulebook.rule_table import RuleTable
from unitify.scheme.sweep import DRAWN

#: Parameter → (mean, RMS) of its elements; others keep what they hold.
Drawn = Mapping[str, tuple[float, float]]
Roles = Mapping[str, ParameterRole]


def unit_weights(roles: Roles) -> Drawn:
    """N(0, 1); gains of one and biases of zero (Blake et al. 2023, section 4)."""
    of_role = dict.fromkeys(DRAWN, (0.0, 1.0)) | {"gain": (1.0, 1.0), "bias": (0.0, 0.0)}
    return {name: of_role[held.role] for name, held in roles.items() if held.role in of_role}


def glorot_weights(roles: Roles, capture: Capture) -> Drawn:
    """Weights of matmuls, of variance 2/(fan_in + fan_out) (Glorot and Bengio 2010, eq. 16)."""
    found = {}
    for name, held in roles.items():
        shape = shape_of(capture.attribute(capture.aliases[name]))
        if held.role in DRAWN and held.fan_in and len(shape) > 1:
            fans = (shape[0] + shape[1]) * math.prod(shape[2:])
            found[name] = (0.0, math.sqrt(2 / fans))
    return found


class DrawnMoments(ForwardMoments):
    """Moments with parameters as drawn; ``unit_inputs``: names of values taken to be of unit RMS.

    ``unit_inputs`` is empty where inputs are what the example says.
    """

    def __init__(
        self,
        capture: Capture,
        rules: RuleTable,
        drawn: Drawn,
        unit_inputs: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__(capture, rules, weight_rms=None)
        self.drawn, self.unit_inputs = drawn, unit_inputs

    def _weight(self, node: fx.Node) -> Moment:
        name = self.capture.aliases.get(str(node.target), "")
        if name not in self.drawn:
            return super()._weight(node)
        mean, rms = self.drawn[name]
        return gaussian(mean, rms, node.meta["val"].dim())

    def _attribute(self, node: fx.Node) -> None:
        super()._attribute(node)
        if isinstance(self.known.get(node), bool):
            # As in training, whatever mode the model happens to be in.
            self.known[node] = True

    def _note(self, node: fx.Node, results: Results, way: str, inputs: Mapping[str, float]) -> None:
        if node.name in self.unit_inputs and is_scalable(node):
            results = [gaussian(0.0, 1.0, node.meta["val"].dim())]
        super()._note(node, results, way, inputs)
