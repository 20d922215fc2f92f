"""The operators of emitted graphs, registered with torch: ``rescale``, ``cast`` and others."""

from unitify.ops import cast, centring, fp8_linear, rescale, written

__all__ = ["cast", "centring", "fp8_linear", "rescale", "written"]
