"""What all tests of the server begin with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gratis.server import run_reader


@pytest.fixture(autouse=True, scope="session")
def _readers_end() -> Iterator[None]:
    """The thread that reads runs ends as soon as it has nothing to read: by default it looks at
    them for two minutes more, each second, and each test has one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_reader, "IDLE_S", 0.0)
        yield
