"""Datasets for the loader's tests: 101 samples in shards of 10, as JPEG and raw; and a server of the first."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from handmade import picture, write_dataset
from serving import FaultyServer, faulty

COUNT = 101


@pytest.fixture(scope="session")
def jpeg_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("loader") / "jpeg", [picture(i) for i in range(COUNT)])


@pytest.fixture(scope="session")
def raw_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("loader") / "raw", [picture(i) for i in range(COUNT)], codec="raw")


@pytest.fixture
def server(jpeg_dataset: Path) -> Iterator[FaultyServer]:
    with faulty(jpeg_dataset) as server:
        yield server
