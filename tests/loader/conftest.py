"""Datasets for the loader's tests: 101 samples in shards of 10, as JPEG and raw."""

from __future__ import annotations

from pathlib import Path

import pytest
from handmade import picture, write_dataset

COUNT = 101


@pytest.fixture(scope="session")
def jpeg_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("loader") / "jpeg", [picture(i) for i in range(COUNT)])


@pytest.fixture(scope="session")
def raw_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("loader") / "raw", [picture(i) for i in range(COUNT)], codec="raw")
