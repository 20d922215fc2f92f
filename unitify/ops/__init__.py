"""The operators of emitted graphs, registered with torch: ``rescale``, ``cast`` and others."""

from unitify.ops import arrive, cast, centring, fp8_linear, registered, rescale, written

registered.register_decompositions()

__all__ = ["arrive", "cast", "centring", "fp8_linear", "rescale", "written"]
