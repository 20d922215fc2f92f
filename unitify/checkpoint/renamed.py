"""State dicts with other names: removes the prefixes that wrappers of a model add."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor

from unitify.checkpoint.state_dict import StateDict

#: Names of submodules that torch's wrappers insert anywhere in a path.
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
#: The counter of ``torch.optim.swa_utils.AveragedModel``, whose ``module`` is the model.
_AVERAGED = "n_averaged"
#: Steps of a prefix; each one is tried.
_DEEPEST = 16


def renamings(given: StateDict) -> Iterator[tuple[StateDict, tuple[str, ...]]]:
    """``given``, then with more and more of its names' prefixes removed; each with its changes."""
    done: tuple[str, ...] = ()
    average = given.get(_AVERAGED)
    is_count = isinstance(average, Tensor) and average.numel() == 1 and not average.is_complex()
    if is_count and all(n == _AVERAGED or n.startswith("module.") for n in given):
        yield given, ()
        done = (f"the average of {float(given[_AVERAGED]):g} steps was used",)
        given = without(given, [_AVERAGED])
    for rename, taken in ((str, ""), (_without_wrappers, "names of wrappers")):
        if taken and all(rename(name) == name for name in given):
            continue
        for start in _starts([rename(name) for name in given]):
            renamed = _renamed(given, rename, start)
            removed = " and ".join(filter(None, (taken, f"the prefix {start!r}" if start else "")))
            if len(renamed) == len(given):
                yield renamed, (*done, f"{removed} removed from its names") if removed else done


def without(given: StateDict, names: Iterable[str]) -> StateDict:
    """``given`` without the entries ``names``; ``given`` itself where it has none of them."""
    left = set(names)
    kept = {name: value for name, value in given.items() if name not in left}
    return _with_metadata(kept, getattr(given, "_metadata", None)) if left else given


def _without_wrappers(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _starts(names: list[str]) -> Iterator[str]:
    """The common prefixes of all names, up to each dot."""
    yield ""
    paths = [name.split(".")[:-1] for name in names]
    start = ""
    for depth, steps in enumerate(zip(*paths, strict=False)):
        if len(set(steps)) > 1 or depth == _DEEPEST:
            return
        start += f"{steps[0]}."
        yield start


def _renamed(given: StateDict, rename: Callable[[str], str], start: str) -> StateDict:
    made = {rename(name).removeprefix(start): value for name, value in given.items()}
    metadata = getattr(given, "_metadata", None)
    if metadata is not None:
        paths = {path: rename(f"{path}.") for path in metadata if path}
        metadata = {
            new.removeprefix(start).removesuffix("."): metadata[path]
            for path, new in paths.items()
            if new.startswith(start)
        }
    return _with_metadata(made, metadata)


def _with_metadata(given: dict[str, Any], metadata: Any) -> StateDict:
    """``given`` with the versions of modules that torch keeps in a state dict."""
    made: OrderedDict[str, Any] = OrderedDict(given)
    if metadata is not None:
        made._metadata = metadata  # type: ignore[attr-defined]
    return made
