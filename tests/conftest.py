"""What every test runs under: one torch thread per worker, the same random numbers each time, no deadlines."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, register_random, settings

# derandomize: a failure on one machine is a failure on all. No deadline, no check on speed: no test is timed.
settings.register_profile(
    "densify", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("densify")


class _TorchRandom:
    """torch's generator as hypothesis wants it, so that an example that fails fails again when replayed."""

    def seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def getstate(self) -> torch.Tensor:
        return torch.get_rng_state()

    def setstate(self, state: Any) -> None:
        torch.set_rng_state(state)


_torch_random = _TorchRandom()  # hypothesis holds it weakly
register_random(_torch_random)


def pytest_configure() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Each test starts from the same random state, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
