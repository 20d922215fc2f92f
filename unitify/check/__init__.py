"""``unitify check``: every tensor that a number format would not hold, at the user's own line."""

from unitify.check.asserting import assert_unit_scaled, check_model
from unitify.check.finding import Finding
from unitify.check.outcome import Outcome

__all__ = ["Finding", "Outcome", "assert_unit_scaled", "check_model"]
