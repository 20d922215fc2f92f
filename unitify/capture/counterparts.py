"""The out-of-place operation for an in-place one."""

from __future__ import annotations

import torch
from torch import fx
from torch._ops import OpOverload

from unitify.capture.aliases import Aliases, changes_geometry, written_arguments


def functional_counterpart(operation: OpOverload) -> OpOverload | None:
    """``aten.relu_.default`` → ``aten.relu.default``, ``aten.div.out`` → ``aten.div.Tensor``.

    None where there is no such operation.
    """
    namespace, name = operation._schema.name.split("::")
    library = getattr(torch.ops, namespace)
    packet = getattr(library, name.removesuffix("_"), None)
    if packet is None:
        return None
    wanted = [_form(a) for a in operation._schema.arguments if not a.is_out]
    for overload in packet.overloads():
        found: OpOverload = getattr(packet, overload)
        given = [_form(a) for a in found._schema.arguments]
        if given == wanted and not found._schema.is_mutable:
            return found
    return getattr(packet, operation._overloadname, None) if name.endswith("_") else None


def _form(argument: torch.Argument) -> tuple[str, str, bool]:
    return argument.name, str(argument.type), argument.has_default_value()


def outputs(node: fx.Node) -> set[str]:
    """The names of the arguments that an operation writes its results into, if it is given them."""
    return {a.name for a in node.target._schema.arguments if a.is_out}  # type: ignore[union-attr]


def change_geometries(graph: fx.Graph) -> set[fx.Node]:
    """Replace ``x.t_()`` by a view that later uses of ``x`` take. Returns those views.

    A tensor that shares its memory (an input, a buffer, a view) stays as it is, and so do integers.
    """
    if not any(changes_geometry(node) for node in graph.nodes):
        return set()
    aliases = Aliases(graph)
    position = {node: i for i, node in enumerate(graph.nodes)}
    made: set[fx.Node] = set()
    for node in graph.nodes:
        if not changes_geometry(node):
            continue
        names = [node.args[0]]
        while written := written_arguments(names[-1]):
            names.append(written[0])
        view = functional_counterpart(node.target)
        aliased = view is not None and any(r.alias_info for r in view._schema.returns)
        value = names[-1].meta.get("val")
        is_floating = isinstance(value, torch.Tensor) and value.is_floating_point()
        if not aliased or not is_floating or names[-1].op in ("placeholder", "get_attr"):
            continue
        members = aliases.group[names[-1]].members
        if any(position[m] < position[node] and not _is_returned(m, aliases) for m in members[1:]):
            continue
        for name in names:
            for user in list(name.users):
                if position[user] > position[node]:
                    user.replace_input_with(name, node)
        node.target = view
        made.add(node)
    return made


def _is_returned(node: fx.Node, aliases: Aliases) -> bool:
    return aliases.view[node].call is None
