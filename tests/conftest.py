"""Fixtures that several test files share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch._inductor.config

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch.set_num_threads(1)

import framework_table  # noqa: E402
import hostile_table  # noqa: E402
import zoo  # noqa: E402
from checking import plant  # noqa: E402
from conversion import Conversion, conversion, near_unit_plans  # noqa: E402
from served import made, source  # noqa: E402, F401
from slow import some_slow  # noqa: E402
from true_weights import pair  # noqa: E402, F401

#: Options that write a page of docs/results/ from what the tests of a run found.
TABLES = {"--framework-table": framework_table, "--hostile-table": hostile_table}


def pytest_addoption(parser: pytest.Parser) -> None:
    for option, page in TABLES.items():
        parser.addoption(option, action="store_true", help=f"write {page.PAGE.name}")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    for option, page in TABLES.items():
        if session.config.getoption(option) and exitstatus == 0:
            page.PAGE.write_text(page.table(), "utf-8")


@pytest.fixture(scope="session", params=some_slow(zoo.MODELS, {"t5"}.__contains__))
def converted(request: pytest.FixtureRequest) -> Conversion:
    """Each model of the zoo in turn: every test of one model runs on one capture."""
    return conversion(request.param)


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The planted repository: one a process, since its modules are imported from it once."""
    return plant(tmp_path_factory.mktemp("repository"))


@pytest.fixture
def near_unit() -> Iterator[None]:
    """Every value is held near unit RMS, without a cast."""
    with near_unit_plans():
        yield


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """A compiler that has compiled nothing, neither now nor on another day."""
    torch._dynamo.reset()
    with torch._inductor.config.patch(force_disable_caches=True):
        yield
    torch._dynamo.reset()
