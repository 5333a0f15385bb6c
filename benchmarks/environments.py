"""Environments of other people's software, pinned, for programs that compare with it."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

Requirements = Sequence[Sequence[str]]  # of one pip command each


def python_of(folder: Path, name: str, requirements: Requirements, *, beside: bool = False) -> str:
    """The Python of environment `name` in the folder, which is made where it is not complete; of
    the environment that runs this where nothing is required. beside: what is installed in that one
    (gratis, torch) can be imported too. CalledProcessError, pip's message in it, where that
    fails."""
    if not requirements:
        return sys.executable
    venv = folder.absolute() / f"venv-{name}"
    python = str(venv / "bin" / "python")
    if not (venv / "complete").exists():
        print(f"making {venv}", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", venv], check=True)
        if beside:
            site = venv / Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
            line = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
            (site / "zz_beside.pth").write_text(line)
        for arguments in requirements:
            command = [python, "-m", "pip", "install", "-q", *arguments]
            subprocess.run(command, check=True, stderr=subprocess.PIPE, text=True)
        (venv / "complete").touch()
    return python
