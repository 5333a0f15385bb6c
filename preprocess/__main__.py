"""Command line of the preprocess stage.

python -m preprocess sample --out sample/source
python -m preprocess shards --src sample/source --out sample/shards
"""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Annotated

import tyro

from preprocess.errors import guard
from preprocess.sample import SampleConfig, make_sample
from preprocess.shards import ShardsConfig, make_shards

Command = (
    Annotated[SampleConfig, tyro.conf.subcommand("sample")] | Annotated[ShardsConfig, tyro.conf.subcommand("shards")]
)


def main() -> None:
    signal.signal(signal.SIGTERM, _interrupt)
    config = tyro.cli(Command, prog="python -m preprocess", config=(tyro.conf.OmitSubcommandPrefixes,))
    if isinstance(config, SampleConfig):
        make_sample(config)
    else:
        make_shards(config)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(guard(main))
