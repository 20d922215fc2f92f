"""``unitify check``: finds the tensors that a number format cannot hold, and the line of each."""

from unitify.check.asserting import assert_unit_scaled, check_model
from unitify.check.finding import Finding
from unitify.check.outcome import Outcome

__all__ = ["Finding", "Outcome", "assert_unit_scaled", "check_model"]
