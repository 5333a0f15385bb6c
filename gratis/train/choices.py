"""What an option may be, where options, ranks and layers share it."""

from typing import Literal

Choice = Literal["auto", "on", "off"]
Wire = Literal["float32", "bfloat16", "float16"]
BadSamples = Literal["raise", "quarantine"]
Keep = Literal["auto", "device", "host", "none"]
