"""Values that both a field of LoaderConfig and an option of training take."""

from __future__ import annotations

from typing import Literal

MeanForm = Literal["central", "offset"]
NoiseForm = Literal["sqrt", "printed", "off"]
Positions = Literal["all", "printed", "centre"]
BadSamples = Literal["raise", "quarantine"]
Engine = Literal["native", "dali"]  # who decodes JPEGs
EngineOption = Literal["auto", "native", "dali"]
ShapeOption = Literal["any", "square", "whole"]  # of a dataset's images
DecodedPlace = Literal["device", "host", "none"]  # where decoded images are kept
DecodedOption = Literal["auto", "device", "host", "none"]
