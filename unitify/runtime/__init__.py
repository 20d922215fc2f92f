"""The operators of emitted graphs, registered with torch: ``rescale``, ``cast`` and others."""

from unitify.runtime import (
    arrive,
    cast,
    centering,
    fp8_linear,
    grouped_mm,
    registered,
    rescale,
    written,
)

registered.register_decompositions()

__all__ = ["arrive", "cast", "centering", "fp8_linear", "grouped_mm", "rescale", "written"]
