"""The plan of the baselines: every value as the model has it, gradients times one loss scale."""

from __future__ import annotations

from unitify.capture.whole import Capture
from unitify.operations.laws import holds_tensors, is_scalable
from unitify.plan.scale_plan import Scale, ScalePlan, is_fixed, versions


def uniform_plan(capture: Capture, loss_scale: float = 1.0) -> ScalePlan:
    """Scale(1, 1/``loss_scale``) for every value and parameter: gradients are stored scaled up.

    Static loss scaling, as an assignment of scales: the gradient of an input is true, that of a
    parameter is ``loss_scale`` times it, which ``unitify.optim`` allows for. What must stay true
    does. With ``loss_scale`` one, the graph is the original.

    Dynamic loss scaling is torch's own, around a module of loss scale one (recipe "fp16-plain"):

        scaler = torch.amp.GradScaler("cpu")
        scaler.scale(module(batch)).backward()
        scaler.step(optimizer)
        scaler.update()
    """
    scale = Scale(1.0, 1.0 / loss_scale)
    values = {
        node.name: Scale() if is_fixed(capture, node) else scale
        for node in capture.graph.nodes
        if is_scalable(node) or holds_tensors(node)
    }
    used = {str(n.target) for n in capture.graph.nodes if n.op == "get_attr" and n.name in values}
    parameters = {
        name: scale if first in used else Scale() for name, first in capture.aliases.items()
    }
    return ScalePlan(values, parameters, versions())
