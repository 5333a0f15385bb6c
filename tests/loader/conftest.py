"""Datasets for the loader's tests: 101 samples in shards of 10, as JPEG and raw; and a server of
the first."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import FaultyServer, faulty


@pytest.fixture
def server(jpeg_dataset: Path) -> Iterator[FaultyServer]:
    with faulty(jpeg_dataset) as server:
        yield server
