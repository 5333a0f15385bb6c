"""Which modules the Python processes find that a command starts."""

from __future__ import annotations

import os
import site
from pathlib import Path

HOME = Path(__file__).resolve().parents[1]  # of the packages: a checkout, or site-packages


def import_ours() -> None:
    """Children of this process, and theirs, import gratis from where this one has it: `python -m` looks in the current
    folder first, where a user's own `server.py` may be. Python 3.10 cannot be told, and does so still."""
    os.environ["PYTHONSAFEPATH"] = "1"
    installed = [*site.getsitepackages(), site.getusersitepackages()]
    if HOME not in [Path(folder).resolve() for folder in installed]:  # those must stay behind the library's
        behind = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = f"{HOME}{os.pathsep}{behind}" if behind else str(HOME)
