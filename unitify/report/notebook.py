"""A report in a notebook: numbers of the whole model, and the main figure as an image.

It is small, because a notebook file contains it. The page is a separate file.
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
