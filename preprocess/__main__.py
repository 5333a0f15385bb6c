"""Command line of the preprocess stage.

python -m preprocess sample --out sample/source
python -m preprocess shards --src sample/source --out sample/shards
python -m preprocess verify sample/shards
python -m preprocess inspect sample/shards
"""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Annotated

import tyro

from preprocess.errors import guard
from preprocess.inspect import InspectConfig, inspect
from preprocess.sample import SampleConfig, make_sample
from preprocess.shards import ShardsConfig, make_shards
from preprocess.verify import VerifyConfig, verify

Command = (
    Annotated[SampleConfig, tyro.conf.subcommand("sample")]
    | Annotated[ShardsConfig, tyro.conf.subcommand("shards")]
    | Annotated[VerifyConfig, tyro.conf.subcommand("verify")]
    | Annotated[InspectConfig, tyro.conf.subcommand("inspect")]
)


def main() -> None:
    signal.signal(signal.SIGTERM, _interrupt)
    config = tyro.cli(Command, prog="python -m preprocess", config=(tyro.conf.OmitSubcommandPrefixes,))
    match config:
        case SampleConfig():
            make_sample(config)
        case ShardsConfig():
            make_shards(config)
        case VerifyConfig():
            verify(config)
        case InspectConfig():
            inspect(config)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(guard(main))
