"""How the ranks' OpenMP threads wait."""

from __future__ import annotations

import pytest

from gratis.processes import SPINS, bound_spinning


@pytest.mark.parametrize("said", [{"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "5"}])
def test_what_the_user_said_of_waiting_stays(said: dict[str, str]) -> None:
    environment = dict(said)
    bound_spinning(environment)
    assert environment == said


def test_threads_without_work_sleep_soon() -> None:
    environment = {"OMP_NUM_THREADS": "2"}
    bound_spinning(environment)
    assert environment == {"OMP_NUM_THREADS": "2", "GOMP_SPINCOUNT": SPINS}
