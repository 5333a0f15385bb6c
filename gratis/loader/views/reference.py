"""One view in plain NumPy: what the compiled pass on the CPU (`normaliser`), torch (`torch_views`)
and DALI's graph on a GPU (`gratis.loader.decoding.gpu`) must equal, to 1e-3."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def apply_view(
    image: NDArray[np.uint8],
    *,
    y: int,
    x: int,
    flip: bool,
    crop: int,
    mean: NDArray[np.float32],
    mean_form: str,
    shift: NDArray[np.float64],
    factor: float | NDArray[np.float64],
) -> NDArray[np.float64]:
    """One stored image [S,S,3] to what the network sees, float64 [3,crop,crop], in the order of
    the specification's section 2, step 6.

    shift [3] is the colour noise in 0-255 units; factor, of each channel or of all, comes last. The
    mean at the crop's own offset belongs to the image's places and is mirrored with them; the
    central region belongs to the network's input and is not."""
    centre = (len(image) - crop) // 2
    pixels = image[y : y + crop, x : x + crop].astype(np.float64)
    if mean_form == "offset":
        pixels -= mean[y : y + crop, x : x + crop]
    if flip:
        pixels = pixels[:, ::-1]
    if mean_form == "central":
        pixels = pixels - mean[centre : centre + crop, centre : centre + crop]
    return ((pixels + shift) * factor).transpose(2, 0, 1)
