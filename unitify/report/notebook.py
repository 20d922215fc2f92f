"""What a notebook shows of a report: figures of the whole model, and the main figure as an image.

Small enough to be kept in a notebook; the page itself is a file of its own.
"""

from __future__ import annotations

import base64

from unitify.diagnostics import UnitifyError
from unitify.report.figure import figure
from unitify.report.numerics import Numerics
from unitify.report.page import environment
from unitify.report.summary import facts


def notebook_html(numerics: Numerics) -> str:
    """HTML without scripts; without the image where matplotlib is not installed."""
    try:
        drawn = base64.b64encode(figure(numerics, "svg")).decode()
    except UnitifyError:
        drawn = ""
    template = environment().get_template("notebook.html.j2")
    return template.render(model=numerics.model, facts=list(facts(numerics)), figure=drawn)
