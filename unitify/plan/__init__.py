"""Third stage: estimates → ``ScalePlan``, a scale for every value and parameter."""

from unitify.plan.scale_plan import Scale, ScalePlan, plan

__all__ = ["Scale", "ScalePlan", "plan"]
