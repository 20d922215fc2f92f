"""The operators of emitted graphs, registered with torch: ``rescale``, ``cast``, ``fp8_linear``."""

from unitify.ops import cast, fp8_linear, rescale

__all__ = ["cast", "fp8_linear", "rescale"]
