"""Families of layouts: what stands beside the weights in a folder, by the kind of its reader."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unitify.diagnostics import Diagnostic, LoadsWrongly
from unitify.serve.cached import Cached
from unitify.serve.decoded import in_compressed_tensors, in_modelopt
from unitify.serve.experts import stacked
from unitify.serve.layouts import PER_TENSOR, PLAIN8, Layout
from unitify.serve.reopened import Reader, in_transformers
from unitify.version import __version__


@dataclass(frozen=True)
class Family:
    """One kind of folder.

    ``config``: ``quantization_config``, from a layout, the layers that are not cast, and whether
    there are scales of keys and values. ``files``: further JSON files, from the same. ``cache``:
    the names of those scales below an attention. ``shape``: that of a scale of one number.
    ``opened``: its reader; ``packages``: those that this needs. ``notes``: what the user must know
    of such a folder.
    """

    config: Callable[[Layout, list[str], bool], dict[str, Any]]
    files: Callable[[Layout, list[str], bool], Mapping[str, dict[str, Any]]]
    cache: tuple[str, str]
    shape: tuple[int, ...]
    opened: Callable[[nn.Module, Path], Reader]
    packages: tuple[str, ...] = ()
    notes: tuple[Diagnostic, ...] = ()

    def cache_scales(self, kept: Cached) -> dict[str, Tensor]:
        """The scales of an attention's cache, by the names of their tensors."""
        scales = zip(self.cache, (kept.key, kept.value), strict=True)
        names = {f"{kept.attention}.{name}".lstrip("."): scale for name, scale in scales}
        return {name: torch.full(self.shape, scale) for name, scale in names.items()}


def _compressed(layout: Layout, ignored: list[str], has_cache: bool) -> dict[str, Any]:
    group = {"targets": ["Linear"], **layout.config, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": layout.compression,
        # Without this key loaders read codes as numbers.
        "quantization_status": "compressed",
        "version": version("compressed-tensors"),
        "config_groups": {"group_0": {**group, "format": layout.compression}},
        "ignore": ignored,
        "kv_cache_scheme": dict(PER_TENSOR) if has_cache else None,
        "global_compression_ratio": None,
    }


def _opened(model: nn.Module, folder: Path) -> Reader:
    """``folder``, opened by transformers, which reads experts in FP8 alone, and rounds no inputs of
    theirs."""
    return (in_compressed_tensors if stacked(model) else in_transformers)(model, folder)


_PRODUCER = {"name": "unitify", "version": __version__}
#: The file in which older versions of TensorRT-LLM and SGLang look for what config.json says, too.
_OWN_CONFIG = "hf_quant_config.json"


def _modelopt(layout: Layout, ignored: list[str], has_cache: bool) -> dict[str, Any]:
    scheme = dict(PLAIN8) if has_cache else None
    return {
        "quant_method": "modelopt",
        "quant_algo": layout.compression,
        "config_groups": {"group_0": {**layout.config, "targets": ["Linear"]}},
        "ignore": ignored,
        "kv_cache_scheme": scheme,
        "producer": _PRODUCER,
    }


def _modelopt_files(layout: Layout, ignored: list[str], has_cache: bool) -> dict[str, Any]:
    size = layout.config["weights"].get("group_size")
    algorithm = {
        "quant_algo": layout.compression,
        "kv_cache_quant_algo": "FP8" if has_cache else None,
        "exclude_modules": ignored,
        **({"group_size": size} if size else {}),
    }
    return {_OWN_CONFIG: {"producer": _PRODUCER, "quantization": algorithm}}


#: Families by name.
FAMILIES: Mapping[str, Family] = {
    "compressed-tensors": Family(
        _compressed, lambda *_: {}, ("k_scale", "v_scale"), (1,), _opened,
        packages=("compressed-tensors",),
    ),
    "modelopt": Family(
        _modelopt, _modelopt_files, ("k_proj.k_scale", "v_proj.v_scale"), (), in_modelopt,
        notes=(LoadsWrongly(),),
    ),
}  # fmt: skip
