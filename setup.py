"""Builds the engine's library (gratis/loader/engine), which has no Python in it: one file for every
Python of a machine, compiled once for each instruction set. Without a compiler gratis installs
without it."""

from __future__ import annotations

import platform
import re
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOM = "gratis/loader/engine"
NAME = "gratis.loader.engine.libgratis_engine"
COMMON = "-O3 -std=gnu11 -fvisibility=hidden -ffp-contract=off -fwrapv -fno-math-errno -g0".split()
AVX2 = "-mavx2 -mfma -mf16c -mbmi -mbmi2 -mlzcnt".split()
AVX512 = [
    *AVX2,
    *"-mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vbmi".split(),
    "-mprefer-vector-width=512",
]
FLAGS = {"avx2.c": AVX2, "avx512.c": AVX512}  # of x86-64 alone; others have the portable code
PARTS = ["augment", "encode", "engine", "header", "mixing", "partners"]
PARTS += ["portable", "views", "weights", "whole"]
SOURCES = [f"{ROOM}/{name}.c" for name in PARTS]
HEADERS = [
    f"{ROOM}/{name}.h"
    for name in ("encoding", "engine", "kernels", "mixing", "operations", "vectors")
]
MANYLINUX = (2, 17)  # the oldest C library that wheels of this name run on
X86 = platform.machine() in ("x86_64", "AMD64")


class BuildEngine(build_ext):
    """Flags for each file, and a file name without Python's version. A name with a dot is no
    module's, which those who walk through packages would import."""

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", "/") + ".native.so"

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return []

    def build_extension(self, ext: Extension) -> None:
        objects: list[str] = []
        for source in ext.sources:
            flags = [*COMMON, *FLAGS.get(Path(source).name, [])]
            macros = [("GRATIS_X86", "1")] if X86 else []
            objects += self.compiler.compile(
                [source], self.build_temp, macros, extra_postargs=flags, depends=ext.depends
            )
        Path(self.get_ext_fullpath(ext.name)).parent.mkdir(parents=True, exist_ok=True)
        self.compiler.link_shared_object(objects, self.get_ext_fullpath(ext.name), libraries=["m"])


class EngineWheel(bdist_wheel):
    """For any Python on this kind of machine; for any machine where nothing was compiled."""

    def get_tag(self) -> tuple[str, str, str]:
        library = Path(self.bdist_dir) / f"{ROOM}/libgratis_engine.native.so"
        if not library.exists():
            self.root_is_pure = True
            return "py3", "none", "any"
        tag = super().get_tag()[2]
        wanted = re.findall(rb"GLIBC_(\d+)\.(\d+)", library.read_bytes())
        if (
            sys.platform == "linux"
            and wanted
            and max((int(a), int(b)) for a, b in wanted) <= MANYLINUX
        ):
            tag = (
                tag.replace("linux_", "manylinux_{}_{}_".format(*MANYLINUX))
                if tag.startswith("linux")
                else tag
            )
        return "py3", "none", tag


setup(
    ext_modules=[
        Extension(
            NAME,
            SOURCES + [f"{ROOM}/{name}" for name in FLAGS if X86],
            depends=HEADERS,
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildEngine, "bdist_wheel": EngineWheel},
)
