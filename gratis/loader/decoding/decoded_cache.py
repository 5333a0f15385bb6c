"""Samples that stay decoded: a split's whole images in memory, and where they are kept.

Each rank has a cache of its own: over the epochs it needs every sample."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gratis.choices import DecodedPlace
from gratis.dataset import Manifest
from gratis.errors import GratisError
from gratis.loader.config import LoaderConfig
from gratis.loader.plan import Ids
from gratis.memory import available_bytes

DEVICE_SHARE = 0.5  # of a device's free memory; training itself comes later and needs the rest
HOST_SHARE = 0.25  # of the machine's free memory; the page cache of the shards lives there too
MISSING, PRESENT, BAD = 0, 1, 2  # bad: cannot be decoded whole


def choose_place(
    config: LoaderConfig,
    manifest: Manifest,
    samples: int,
    device: torch.device,
    *,
    local_world: int,
) -> DecodedPlace:
    """Where a split's pixels are kept. `auto`: on the device if they fit, else in the machine's
    memory, else nowhere.

    The budget is `decoded_gb`, or a share of what is free now. local_world: ranks on this machine;
    those on one device, or all that use the machine's memory, share it. GratisError: what was asked
    for is not possible."""
    if config.decoded == "none":
        return "none"
    places: tuple[DecodedPlace, ...] = ("device", "host")
    if device.type != "cuda" or config.area:
        places = ("host",)
        if config.decoded == "device":
            resized = "parts are resized by the decoder's library"
            reason = resized if config.area else f"the loader's device is {device}"
            raise GratisError(f"decoded='device': {reason}; take 'host' or 'auto'")
    if config.decoded != "auto":
        places = tuple(place for place in places if place == config.decoded)
    elif device.type != "cuda" and manifest.codec == "raw":
        return "none"  # nothing is decoded, and the page cache holds the same pixels
    nbytes = 3 * samples * manifest.image_size**2
    free = {place: _budget(config, place, device, local_world) for place in places}
    for place in places:
        if nbytes <= free[place]:
            return place
    if config.decoded != "auto":
        chosen = config.decoded_gb
        advice = "raise decoded_gb" if chosen else "set decoded_gb if it fits all the same"
        most = f"{nbytes / 1e9:.3g} GB of pixels are more than the {free[places[0]] / 1e9:.3g} GB"
        raise GratisError(
            f"decoded={config.decoded!r}: {most} meant for them; {advice}, or take decoded='auto'"
        )
    return "none"


def _budget(
    config: LoaderConfig, place: DecodedPlace, device: torch.device, local_world: int
) -> float:
    """Bytes, of one rank: its part of what those have together who keep their pixels in the same
    memory."""
    sharers = -(-local_world // torch.cuda.device_count()) if place == "device" else local_world
    if config.decoded_gb is not None:
        return config.decoded_gb * 1e9 / sharers
    if place == "device":
        return DEVICE_SHARE * torch.cuda.mem_get_info(device)[0] / sharers
    return HOST_SHARE * available_bytes() / sharers


class DecodedCache:
    """The pixels, uint8 [N,S,S,3] on a device or in the machine's memory, and which of them are
    present."""

    def __init__(self, count: int, size: int, device: torch.device | None) -> None:
        # host: taken as written
        self.pixels = torch.empty((count, size, size, 3), dtype=torch.uint8, device=device)
        self.state = np.full(count, MISSING, np.int8)

    def put(self, ids: Ids, pixels: Tensor) -> None:
        places = torch.from_numpy(ids).to(self.pixels.device)
        self.pixels[places] = pixels.to(self.pixels.device)
        if self.pixels.device.type == "cuda" or pixels.device.type == "cuda":
            torch.cuda.current_stream().synchronize()  # the decoder takes its buffer back
        self.state[ids] = PRESENT

    def lacks(self, ids: Ids) -> Ids:
        """Those that were never tried."""
        never: Ids = np.unique(ids[self.state[ids] == MISSING])
        return never

    def holds(self, ids: Ids) -> bool:
        return bool((self.state[ids] == PRESENT).all())
