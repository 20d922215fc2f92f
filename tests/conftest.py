"""Fixtures that several test files share."""

from __future__ import annotations

import os

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch.set_num_threads(1)

import zoo  # noqa: E402
from conversion import Conversion, conversion  # noqa: E402


@pytest.fixture(scope="session", params=list(zoo.MODELS))
def converted(request: pytest.FixtureRequest) -> Conversion:
    """Each model of the zoo in turn: every test of one model runs on one capture."""
    return conversion(request.param)
