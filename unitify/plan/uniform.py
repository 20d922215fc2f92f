"""The plan of the baselines: true values, and gradients times one loss scale."""

from __future__ import annotations

from unitify.capture.whole import Capture
from unitify.plan.fixed import fixed_values, is_true_parameter
from unitify.plan.scale_plan import Scale, ScalePlan, versions, weights_of
from unitify.rulebook.laws import holds_tensors, is_scalable


def uniform_plan(capture: Capture, loss_scale: float = 1.0) -> ScalePlan:
    """Scale(1, 1/``loss_scale``) for every value and parameter: gradients are stored scaled up.

    This is static loss scaling, written as scales. The gradient of an input is true. The gradient
    of a stored parameter is ``loss_scale`` times the true one, which ``unitify.optim`` allows for.
    The gradient of a true parameter is rounded scaled up, by its unit, and is then true. With a
    ``loss_scale`` of one the graph is the original.

    For dynamic loss scaling, use torch's own around a module of loss scale one ("fp16-plain"):

        scaler = torch.amp.GradScaler("cpu")
        scaler.scale(module(batch)).backward()
        scaler.step(optimizer)
        scaler.update()
    """
    scale = Scale(1.0, 1.0 / loss_scale)
    fixed = fixed_values(capture)
    carriers = [n for n in capture.graph.nodes if is_scalable(n) or holds_tensors(n)]
    values = {node.name: Scale() if node in fixed else scale for node in carriers}
    held = {n for n in carriers if n.op == "get_attr"}
    used = {str(n.target) for n in held if n not in fixed}
    parameters = {
        name: scale if first in used else Scale() for name, first in capture.aliases.items()
    }
    units = {n.name: scale for n in held if is_true_parameter(capture, n) and scale != Scale()}
    weights = weights_of(capture)
    return ScalePlan(values, parameters, versions(), units, weights, "casts")
