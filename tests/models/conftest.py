"""Settings of the tests of models."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Small models are slower on several threads, and much slower on a busy machine."""
    torch.set_num_threads(1)
