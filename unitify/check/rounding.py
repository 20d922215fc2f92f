"""Gradients that are zero but for rounding, like that of a bias of keys.

No format loses anything of them, so they are not judged.
"""

from __future__ import annotations

from unitify.analysis.analyze import Analysis
from unitify.estimates import Estimates, Rms

#: A gradient that analysis knows to be zero is rounding if it is this small beside its terms.
#: Rounded to 16 bits a sum of many terms leaves about so much.
ROUNDING = 2.0**-6


def rounding_gradients(analysis: Analysis, measured: Estimates) -> frozenset[str]:
    """The values with such a gradient: zero by analysis, and next to nothing in a run."""
    found: set[str] = set()
    for name, rms in measured.items():
        if analysis.estimates.get(name, Rms()).backward != 0 or not rms.backward:
            continue
        steps = analysis.backward.get(name, ())
        terms = (measured.get(n, Rms()).backward for step in steps for n in step.inputs)
        if rms.backward < ROUNDING * max((term for term in terms if term), default=0.0):
            found.add(name)
    return frozenset(found)
