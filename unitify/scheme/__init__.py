"""A stage before the pipeline: unit scaling and u-μP, as constants of another true model."""

from unitify.scheme.options import UMuP, UnitScheme

__all__ = ["UMuP", "UnitScheme"]
