"""The JPEG decoders of loaders, each as a function from a file to pixels. Imported with what the
decoder's own environment has: NumPy and that package."""

from __future__ import annotations

import importlib.metadata
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Pixels = Any  # [height,width,3], or what the decoder has instead
Decode = Callable[[bytes], Pixels]


class Decoder(NamedTuple):
    """environment: a key of `ENVIRONMENTS`; make: imports the package, gives the function and what
    is inside of it that has a version of its own."""

    environment: str
    package: str
    make: Callable[[], tuple[Decode, str]]


# what is installed for each, exactly; "here": the environment that runs this program
ENVIRONMENTS: dict[str, tuple[str, ...]] = {
    "here": (),
    "many": (
        "numpy==2.4.6",
        "pillow==13.0.0",
        "opencv-python-headless==5.0.0.93",
        "simplejpeg==1.9.0",
        "PyTurboJPEG==1.8.3",  # 2 wants libjpeg-turbo 3
        "turboloader==2.39.0",
        "imageio==2.38.1",
        "imagecodecs==2026.3.6",
        "av==18.1.0",
        "spdl-io==0.8.0",
        "datago==2026.10.1",
        "nvidia-nvimgcodec-cu13==0.9.0.20",
        "pyvips==3.2.0",
        "pyvips-binary==8.18.7",
        "kornia-rs==0.2.0",
    ),
    "simd": ("numpy==2.4.6", "pillow-simd==12.1.1.post0"),
    "tensorflow": ("tensorflow-cpu==2.21.0",),
    "torchvision": ("numpy==2.4.6", "torch==2.13.0", "torchvision==0.28.0", "torchcodec==0.17.0"),
}


def _dali(**options: Any) -> tuple[Decode, str]:
    from nvidia.dali import Pipeline, fn

    def decode(data: bytes) -> Pixels:
        pipeline = Pipeline(
            1, 1, None, prefetch_queue_depth=1, exec_pipelined=False, exec_async=False
        )
        with pipeline:
            encoded = fn.external_source(lambda: [np.frombuffer(data, np.uint8)], batch=True)
            pipeline.set_outputs(fn.decoders.image(encoded, device="cpu", **options))
        return np.array(pipeline.run()[0].at(0))

    return decode, "CPU, as gratis calls it"


def _pillow() -> tuple[Decode, str]:
    from PIL import Image, features

    turbo = f"libjpeg-turbo {features.version('libjpeg_turbo')}"
    return lambda data: np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), turbo


def _opencv() -> tuple[Decode, str]:
    cv2: Any = import_module("cv2")

    def decode(data: bytes) -> Pixels:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        if image is None:
            raise ValueError("imdecode gives None")
        return image[..., ::-1]

    return decode, ""


def _simplejpeg() -> tuple[Decode, str]:
    simplejpeg: Any = import_module("simplejpeg")

    return lambda data: simplejpeg.decode_jpeg(data, "RGB"), ""


def _turbojpeg() -> tuple[Decode, str]:
    turbojpeg: Any = import_module("turbojpeg")

    jpeg = turbojpeg.TurboJPEG(os.environ.get("TURBOJPEG"))
    return lambda data: jpeg.decode(data, pixel_format=turbojpeg.TJPF_RGB), ""


def _turboloader() -> tuple[Decode, str]:
    return import_module("turboloader").decode_jpeg, ""


def _imageio() -> tuple[Decode, str]:
    return import_module("imageio.v3").imread, "by Pillow"


def _imagecodecs() -> tuple[Decode, str]:
    imagecodecs: Any = import_module("imagecodecs")

    libraries = imagecodecs.version(dict)
    turbo = f"libjpeg-turbo {libraries['libjpeg_turbo']}"
    return lambda data: imagecodecs.jpeg8_decode(data, outcolorspace="RGB"), turbo


def _av() -> tuple[Decode, str]:
    av: Any = import_module("av")

    def decode(data: bytes) -> Pixels:
        with av.open(io.BytesIO(data), format="jpeg_pipe") as container:
            return next(container.decode(video=0)).to_ndarray(format="rgb24")

    return decode, f"FFmpeg {av.ffmpeg_version_info}"


def _spdl() -> tuple[Decode, str]:
    """`ffmpeg` (agreement.py) says where its FFmpeg comes from."""
    spdl: Any = import_module("spdl.io")

    def decode(data: bytes) -> Pixels:
        filters = spdl.get_video_filter_desc(pix_fmt="rgb24")
        return np.array(spdl.to_numpy(spdl.load_image(data, filter_desc=filters)))

    return decode, "FFmpeg of PyAV"


def _datago() -> tuple[Decode, str]:
    datago: Any = import_module("datago")

    def decode(data: bytes) -> Pixels:
        folder = tempfile.mkdtemp()
        try:
            Path(folder, "a.jpg").write_bytes(data)
            source = {"root_path": folder, "rank": 0, "world_size": 1, "random_sampling": False}
            config = {"source_type": "file", "source_config": source, "limit": 1}
            buffers = {"prefetch_buffer_size": 1, "samples_buffer_size": 1}
            client = datago.DatagoClient(json.dumps(config | buffers))
            sample = client.get_sample()
            if sample is None:
                raise ValueError("get_sample gives None")
            return np.array(sample.image.to_numpy_array())
        finally:
            shutil.rmtree(folder)

    return decode, ""


def _nvimgcodec() -> tuple[Decode, str]:
    nvimgcodec: Any = import_module("nvidia.nvimgcodec")

    decoder = nvimgcodec.Decoder(
        device_id=nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY,
        backends=[nvimgcodec.Backend(nvimgcodec.CPU_ONLY)],
    )

    def decode(data: bytes) -> Pixels:
        stream = nvimgcodec.CodeStream(data)
        image = decoder.decode(stream)
        if image is None:
            raise ValueError("decode gives None")
        return np.array(image)

    return decode, "CPU only"


def _vips() -> tuple[Decode, str]:
    pyvips: Any = import_module("pyvips")

    library = ".".join(str(pyvips.version(k)) for k in range(3))

    def decode(data: bytes) -> Pixels:
        image = pyvips.Image.new_from_buffer(data, "", fail_on="error")
        return image.colourspace("srgb").numpy()

    return decode, f"libvips {library}"


def _kornia() -> tuple[Decode, str]:
    kornia_rs: Any = import_module("kornia_rs")

    def decode(data: bytes) -> Pixels:
        with tempfile.NamedTemporaryFile(suffix=".jpg") as file:
            file.write(data)
            file.flush()
            return np.asarray(kornia_rs.read_image_jpeg(file.name, "rgb"))

    return decode, ""


def _tensorflow(**options: Any) -> tuple[Decode, str]:
    tf: Any = import_module("tensorflow")

    called = ", ".join(["decode_jpeg", *(f"{name}={value}" for name, value in options.items())])
    return lambda data: tf.io.decode_jpeg(data, channels=3, **options).numpy(), called


def _torchvision() -> tuple[Decode, str]:
    import torch

    vision: Any = import_module("torchvision.io")

    def decode(data: bytes) -> Pixels:
        encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return vision.decode_jpeg(encoded, vision.ImageReadMode.RGB).permute(1, 2, 0).numpy()

    return decode, "decode_jpeg, CPU"


def _torchcodec() -> tuple[Decode, str]:
    codec: Any = import_module("torchcodec.decoders")
    return lambda data: codec.decode_jpeg(data).permute(1, 2, 0).numpy(), "decode_jpeg, CPU"


Crop = Callable[[bytes, int, int, int], Pixels]  # of a file, from y and x on, so many pixels a side


def _crop_dali() -> Crop:
    from nvidia.dali import Pipeline, fn

    def crop(data: bytes, y: int, x: int, side: int) -> Pixels:
        pipeline = Pipeline(
            1, 1, None, prefetch_queue_depth=1, exec_pipelined=False, exec_async=False
        )
        with pipeline:
            encoded = fn.external_source(lambda: [np.frombuffer(data, np.uint8)], batch=True)
            image = fn.decoders.image_slice(
                encoded, device="cpu", start=(y, x), shape=(side, side), axes=(0, 1)
            )
            pipeline.set_outputs(image)
        return np.array(pipeline.run()[0].at(0))

    return crop


def _crop_tensorflow() -> Crop:
    tf: Any = import_module("tensorflow")

    def crop(data: bytes, y: int, x: int, side: int) -> Pixels:
        return tf.io.decode_and_crop_jpeg(data, [y, x, side, side], channels=3).numpy()

    return crop


def _crop_nvimgcodec() -> Crop:
    nvimgcodec: Any = import_module("nvidia.nvimgcodec")
    decoder = nvimgcodec.Decoder(
        device_id=nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY,
        backends=[nvimgcodec.Backend(nvimgcodec.CPU_ONLY)],
    )

    def crop(data: bytes, y: int, x: int, side: int) -> Pixels:
        region = nvimgcodec.Region(start=[y, x], end=[y + side, x + side])
        stream = nvimgcodec.CodeStream(data)
        return np.array(decoder.decode(stream.get_sub_code_stream(region=region)))

    return crop


# those that decode a part of a file
CROPS: dict[str, Callable[[], Crop]] = {
    "gratis (DALI)": _crop_dali,
    "TensorFlow": _crop_tensorflow,
    "nvImageCodec": _crop_nvimgcodec,
}
ACCURATE = {"dct_method": "INTEGER_ACCURATE"}
DECODERS: dict[str, Decoder] = {
    "Pillow": Decoder("many", "pillow", _pillow),
    "gratis (DALI)": Decoder(
        "here", "nvidia-dali-cuda130", lambda: _dali(adjust_orientation=False)
    ),
    "pillow-simd": Decoder("simd", "pillow-simd", _pillow),
    "torchvision": Decoder("torchvision", "torchvision", _torchvision),
    "torchcodec": Decoder("torchvision", "torchcodec", _torchcodec),
    "OpenCV": Decoder("many", "opencv-python-headless", _opencv),
    "TensorFlow": Decoder("tensorflow", "tensorflow-cpu", _tensorflow),
    "TensorFlow, accurate": Decoder(
        "tensorflow", "tensorflow-cpu", lambda: _tensorflow(**ACCURATE)
    ),
    "SPDL": Decoder("many", "spdl-io", _spdl),
    "PyAV": Decoder("many", "av", _av),
    "datago": Decoder("many", "datago", _datago),
    "PyTurboJPEG": Decoder("many", "PyTurboJPEG", _turbojpeg),
    "TurboLoader": Decoder("many", "turboloader", _turboloader),
    "simplejpeg": Decoder("many", "simplejpeg", _simplejpeg),
    "imageio": Decoder("many", "imageio", _imageio),
    "imagecodecs": Decoder("many", "imagecodecs", _imagecodecs),
    "nvImageCodec": Decoder("many", "nvidia-nvimgcodec-cu13", _nvimgcodec),
    "libvips": Decoder("many", "pyvips", _vips),
    "kornia-rs": Decoder("many", "kornia-rs", _kornia),
}


def version(decoder: Decoder, inside: str) -> str:
    own = importlib.metadata.version(decoder.package)
    return f"{own} ({inside})" if inside else own
