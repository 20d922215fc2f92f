"""Third stage: from estimates to a ``ScalePlan``, the scale of every value and parameter."""

from unitify.plan.planner import plan
from unitify.plan.scale_plan import Scale, ScalePlan

__all__ = ["Scale", "ScalePlan", "plan"]
