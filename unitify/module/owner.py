"""``Owner``: what a submodule's call needs of the module whose graph contains the submodule."""

from __future__ import annotations

from typing import Any, Protocol

from torch import fx, nn

from unitify.capture.whole import Capture
from unitify.module.about import About
from unitify.plan.scale_plan import ScalePlan
from unitify.recipe.choices import Choice


class Owner(Protocol):
    """The module of whose graph each submodule runs a part."""

    graph: fx.Graph
    capture: Capture
    plan: ScalePlan
    is_inference: bool
    _casts: tuple[Choice, ...]
    _tree: nn.Module
    about: About

    def _attribute(self, target: str) -> Any: ...
