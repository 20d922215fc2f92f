"""Cases of a parametrized test that take long: `make slow` runs them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def some_slow(values: Iterable[Any], is_slow: Callable[[Any], bool]) -> list[Any]:
    """Arguments of ``pytest.mark.parametrize``."""
    return [pytest.param(v, marks=[pytest.mark.slow] if is_slow(v) else []) for v in values]
