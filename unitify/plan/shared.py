"""One unit for each value of a submodule that is called several times.

Such a submodule runs one graph, and a runtime holds one scale for each of its operands. So the same
value has one unit in all calls: the mean of its units, in octaves.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping

import networkx as nx

from unitify.capture.boundaries import Named, Region
from unitify.capture.whole import Capture
from unitify.plan.scale_plan import Scale


def shared_units(capture: Capture, units: Mapping[str, Scale]) -> dict[str, Scale]:
    """``units`` of the values of ``capture``, made equal in all calls of a submodule."""
    order = {node.name: position for position, node in enumerate(capture.graph.nodes)}

    def places(region: Region) -> list[str]:
        given = [leaf.name for leaf in region.given.leaves if isinstance(leaf, Named)]
        return [*given, *sorted(region.nodes & order.keys(), key=order.__getitem__)]

    together: nx.Graph = nx.Graph()
    for path in capture.regions.paths:
        calls = [places(region) for region in capture.regions.of(path)]
        if len({len(call) for call in calls}) == 1:
            for first, second in itertools.pairwise(calls):
                together.add_edges_from(zip(first, second, strict=True))
    found = dict(units)
    for members in nx.connected_components(together):
        held = [found[name].exponents for name in members if name in found]
        if held:
            middle = [round(statistics.mean(octaves)) for octaves in zip(*held, strict=True)]
            found |= {n: Scale.of_exponents(*middle) for n in members if n in found}
    return found
