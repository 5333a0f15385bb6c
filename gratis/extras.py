"""Packages that a plain install may lack: one message, before any work is done."""

from __future__ import annotations

from importlib import import_module

from gratis.errors import GratisError

PACKAGES = {  # of the extras in pyproject.toml: what is imported
    "figures": ("matplotlib",),
    "onnx": ("onnx", "onnxscript"),
    "parquet": ("pyarrow",),
    "tensorboard": ("tensorboard",),
}
INSTALLS = {"figures": "make install"}  # in a checkout; the others are not installed by default


def require(extra: str, feature: str) -> None:
    """GratisError, with the way to install it, where `feature` needs a package of this extra that
    cannot be imported."""
    if lacking := [name for name in PACKAGES[extra] if not importable(name)]:
        install = INSTALLS.get(extra, "make install ARGS=--extra")
        raise GratisError(
            f"{feature} needs {' and '.join(lacking)}: pip install 'gratis[{extra}]', "
            f"in a checkout {install}"
        )


def importable(name: str) -> bool:
    """Whether the package can be imported here: it is there, and so is what it needs."""
    try:
        import_module(name)
    except ImportError:
        return False
    return True
