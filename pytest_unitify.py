"""The pytest plugin of unitify: the fixture ``unitify_check``, a marker and ``--unitify-baseline``.

pytest loads it in every run of an environment that has unitify, so it stands outside of the
package, whose import brings torch along: nothing is loaded before a test asks for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from unitify.check.asserting import CheckFixture


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--unitify-baseline``."""
    group = parser.getgroup("unitify")
    group.addoption(
        "--unitify-baseline",
        metavar="FILE",
        default=None,
        help="findings that are known, as `unitify check --update-baseline` writes them",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker."""
    config.addinivalue_line(
        "markers",
        "unit_scaled(**options): options of the fixture unitify_check in this test: format, "
        "values, recipe, scales, select, ignore and the limits of [tool.unitify.check]",
    )


@pytest.fixture
def unitify_check(request: pytest.FixtureRequest) -> CheckFixture:
    """Call it with a model and its inputs; what it returns has ``findings`` and ``is_clean``.

    ``unitify_check.assert_clean(model, inputs)`` fails with all that was found. Options come from
    ``[tool.unitify.check]``, the marker ``unit_scaled`` and the call, the later the stronger.
    """
    from unitify.check.asserting import CheckFixture

    options: dict[str, Any] = {}
    for marker in reversed(list(request.node.iter_markers("unit_scaled"))):
        options |= marker.kwargs
    given = request.config.getoption("--unitify-baseline")
    baseline = Path(given) if given is not None else None
    return CheckFixture(Path(request.config.rootpath), options, baseline)
