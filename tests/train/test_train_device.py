"""A rank's device, what a GPU is asked, and what compiling lacks: where there is no GPU, by torch's
and NVIDIA's answers as they are on one."""

from __future__ import annotations

import sys
import sysconfig
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gratis.errors import GratisError
from gratis.train.mesh.device import (
    GpuMeter,
    WaitClock,
    check_compiler,
    device_of,
    has_cpp_compiler,
    lacks_for_compiling,
)
from gratis.train.rank import compiles

CUDA = torch.device("cuda", 1)


def test_ranks_take_gpus_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three; more ranks than GPUs share them."""
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    expected = [torch.device("cuda", number) for number in (0, 1, 2, 0, 1)]
    assert [device_of(rank) for rank in range(5)] == expected == current
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(GratisError, match="3 GPUs cannot be used by torch"):
        device_of(0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert device_of(1) == torch.device("cpu")


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder of PATH; no compiler is named otherwise."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def install(folder: Path, name: str) -> None:
    (folder / name).touch(0o755)


@pytest.fixture
def headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where Python's are looked for: in the folder of a plain installation."""
    folder = tmp_path / "include"
    folder.mkdir()

    def path(name: str, scheme: str) -> str:
        assert (name, scheme) == ("include", "posix_prefix")
        return str(folder)

    monkeypatch.setattr(sysconfig, "get_default_scheme", lambda: "posix_local")  # Debian's
    monkeypatch.setattr(sysconfig, "get_path", path)
    (folder / "Python.h").touch()
    return folder


@pytest.mark.parametrize("compiler", ["gcc", "clang", "CC"])
def test_compiling_for_a_gpu_takes_a_c_compiler_and_headers(
    compiler: str, programs: Path, headers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(programs, "g++")
    assert lacks_for_compiling() == "a C compiler (apt install gcc)"
    with pytest.raises(GratisError, match="--compile on needs a C compiler"):
        check_compiler(1)
    if compiler == "CC":
        monkeypatch.setenv("CC", "/opt/cc")
    else:
        install(programs, compiler)
    assert lacks_for_compiling() is None
    check_compiler(1)
    assert compiles("auto", CUDA)
    (headers / "Python.h").unlink()
    assert not compiles("auto", CUDA)
    assert lacks_for_compiling() == "Python's headers (apt install python3-dev)"
    with pytest.raises(GratisError, match="--compile on needs Python's headers"):
        check_compiler(2)
    check_compiler(0)  # for the CPU these are not asked


def test_a_short_run_on_a_cpu_is_compiled_only_if_that_is_wanted() -> None:
    cpu = torch.device("cpu")
    assert [compiles(choice, cpu) for choice in ("on", "auto", "off")] == [True, False, False]
    assert [compiles(choice, CUDA) for choice in ("on", "off")] == [True, False]


@pytest.mark.parametrize("compiler", ["g++", "clang++", "CXX"])
def test_compiling_for_a_cpu_takes_a_cpp_compiler(
    compiler: str, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(programs, "gcc")
    assert not has_cpp_compiler()
    with pytest.raises(GratisError, match=r"needs a C\+\+ compiler on a CPU: apt install g\+\+"):
        check_compiler(0)
    if compiler == "CXX":
        monkeypatch.setenv("CXX", str(programs / "own"))
        assert not has_cpp_compiler()  # it is not there
    install(programs, "own" if compiler == "CXX" else compiler)
    assert has_cpp_compiler()
    check_compiler(0)


class NvmlError(Exception):
    pass


def library(**answers: Any) -> Any:
    """NVIDIA's, of which each function takes the handle of the one device."""

    def answer(value: Any) -> Any:
        def asked(handle: str) -> Any:
            assert handle == "handle of GPU-3f9c"
            if isinstance(value, Exception):
                raise value
            return value

        return asked

    functions = {f"nvmlDeviceGet{name}": answer(value) for name, value in answers.items()}
    return SimpleNamespace(
        NVMLError=NvmlError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda identity: f"handle of {identity}",
        **functions,
    )


@pytest.fixture
def uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    def properties(own: torch.device) -> SimpleNamespace:
        assert own == CUDA
        return SimpleNamespace(uuid="3f9c")

    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)


@pytest.mark.usefixtures("uuid")
def test_a_gpu_s_answers_are_in_the_units_of_the_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library has per cent and milliwatts."""
    whole = library(
        UtilizationRates=SimpleNamespace(gpu=37, memory=12),
        JpgUtilization=[50, 16700],  # and the period of sampling
        PowerUsage=412_500,
        MemoryInfo=SimpleNamespace(used=5 << 30, total=140 << 30, free=135 << 30),
    )
    monkeypatch.setitem(sys.modules, "pynvml", whole)
    assert GpuMeter(CUDA).read() == {
        "busy": 0.37,
        "nvjpg_busy": 0.5,
        "memory_bytes": 5 << 30,
        "memory_total_bytes": 140 << 30,
        "power_w": 412.5,
    }
    refuses = library(UtilizationRates=NvmlError(), PowerUsage=NvmlError())  # an old library's
    monkeypatch.setitem(sys.modules, "pynvml", refuses)
    read = GpuMeter(CUDA).read()
    assert read is not None
    assert {*read.values()} == {None}
    names = {"busy", "nvjpg_busy", "memory_bytes", "memory_total_bytes", "power_w"}
    assert read.keys() == names


@pytest.mark.usefixtures("uuid")
def test_where_there_is_nobody_to_ask_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise NvmlError

    for lacks in ("nvmlInit", "nvmlDeviceGetHandleByUUID"):
        without = library()
        setattr(without, lacks, refused)
        monkeypatch.setitem(sys.modules, "pynvml", without)
        assert GpuMeter(CUDA).read() is None
    monkeypatch.setitem(sys.modules, "pynvml", None)  # not installed
    assert GpuMeter(CUDA).read() is None
    assert GpuMeter(torch.device("cpu")).read() is None


def test_a_cpu_waits_between_asking_and_getting(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([10.0, 10.5, 20.0, 22.0, 30.0, 30.25])
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    clock = WaitClock(torch.device("cpu"))
    for _ in range(2):
        clock.asked()
        clock.got()
    assert clock.take() == 2.5
    clock.asked()
    clock.got()
    clock.forget()
    assert clock.take() == 0.0


def test_a_gpu_waits_between_its_own_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Milliseconds on the device's clock."""

    class Mark:
        made = 0

        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at_ms = (0, 250, 1000, 3000, 4000, 4001)[Mark.made]
            Mark.made += 1

        def elapsed_time(self, end: Mark) -> float:
            return end.at_ms - self.at_ms

    monkeypatch.setattr(torch.cuda, "Event", Mark)
    clock = WaitClock(CUDA)
    for _ in range(2):
        clock.asked()
        clock.got()
    assert clock.take() == 2.25
    clock.asked()
    clock.got()
    assert clock.take() == pytest.approx(0.001)
    assert clock.take() == 0.0
