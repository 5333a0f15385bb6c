"""What is wrong with a command line is one message of one line, on a terminal too."""

from __future__ import annotations

import os
import pty
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest
import tyro

from gratis.command_line import parse
from gratis.errors import GratisError

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ["gratis", "benchmarks"]


@dataclass(frozen=True, kw_only=True)
class Asked:
    place: Annotated[Path, tyro.conf.Positional]
    """Folder of the dataset."""
    key: str
    """Of the image, which is told in a text that is a good deal longer than any terminal's line is
    wide, or nearly."""
    size: int = 256
    share: float | None = None
    part: Literal[1, 2, 30] | None = None
    codec: Literal["jpeg", "raw"] = "jpeg"
    pair: tuple[int, int] = field(default=(1, 2))
    places: tuple[Path, Path] | None = None
    ratio_of_the_images: float = 1.0


def message_of(*arguments: str) -> str:
    with pytest.raises(GratisError) as caught:
        parse(Asked, arguments, "python -m some thing")
    line, help_, rest = str(caught.value).partition(" python -m some thing --help says more")
    assert (help_, rest) == (" python -m some thing --help says more", "")
    return line.rstrip(";")


@pytest.mark.parametrize("columns", ["40", "200"])
@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("", "missing Folder of the dataset, --key STR"),
        ("shards", "missing --key STR"),
        ("s --key", "--key has no value"),
        ("s --key k --size abc", "--size abc: it takes a whole number"),
        ("--key k --size abc s", "--size abc: it takes a whole number"),
        ("s --key k --size=1.5", "--size 1.5: it takes a whole number"),
        ("s --key k --share much", "--share much: it takes a number"),
        ("s --key k --part 3", "--part 3: it may be 1 or 2 or 30"),
        ("s --key k --codec bmp", "--codec bmp: it may be jpeg or raw"),
        (
            "s --key k --ratio-of-images 3",
            "not understood: --ratio-of-images, 3; did you mean --ratio-of-the-images?",
        ),
        ("s --key k --places", "--places has no value"),
        ("s --key k --places a", "--places a: it takes PATH PATH"),
        ("s --key k --xyz 3", "not understood: --xyz, 3"),
        ("s --key k --rat 3", "not understood: --rat, 3; did you mean --ratio-of-the-images?"),
        ("s t --key k", "not understood: t"),
        ("s --kay k", "not understood: --kay, k; did you mean --key?"),
        ("s --key k --siz 3", "not understood: --siz, 3; did you mean --size?"),
        ("s --key k --ratio_of_the_images=x", "--ratio-of-the-images x: it takes a number"),
        ("s --key k --pair 3 x --size 1", "--pair 3 x: it takes INT INT"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: str, line: str, columns: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert message_of(*arguments.split()) == line
    with pytest.raises(GratisError) as caught:
        parse(Asked, arguments.split(), "gratis x")
    joint = "" if line.endswith("?") else ";"
    assert str(caught.value) == f"{line}{joint} gratis x --help says more"
    assert os.environ["COLUMNS"] == columns


def test_a_check_of_the_dataclass_s_own_is_one_line() -> None:
    @dataclass
    class Checked:
        size: int = 1

        def __post_init__(self) -> None:
            if self.size > 1:
                raise ValueError(f"size {self.size}\nis too large")

    with pytest.raises(GratisError) as caught:
        parse(Checked, ["--size", "2"], "some thing")
    assert str(caught.value) == "size 2 is too large; some thing --help says more"


def test_what_is_right_is_returned_and_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    asked = parse(Asked, ["s", "--key", "k", "--part", "30"], "some thing")
    assert asked == Asked(place=Path("s"), key="k", part=30)
    with pytest.raises(SystemExit) as end:
        parse(Asked, ["--help"], "some thing")
    assert not end.value.code
    assert "Folder of the dataset." in capsys.readouterr().out


def test_every_command_line_is_read_through_it() -> None:
    files = (path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
    reading = [path for path in files if "tyro.cli(" in path.read_text()]
    assert reading == [ROOT / "gratis" / "command_line.py"]


COMMANDS = [
    ("-m", "gratis", "wrong"),
    ("-m", "gratis", "shards", "--src", "a", "--size", "wrong"),
    ("-m", "gratis", "preview", "a", "--seed", "wrong"),
    ("-m", "gratis", "explain", "a", "--sample", "b", "--seed", "wrong"),
    ("-m", "gratis", "bench", "loader", "a", "--rounds", "wrong"),
    ("-m", "gratis", "train", "--gpus", "wrong"),
    ("-m", "gratis", "figures", "--bogus", "wrong"),
    ("-m", "gratis", "report", "--minutes", "wrong"),
    ("-m", "gratis", "status", "--port", "wrong"),
    ("-m", "gratis", "top", "--rum", "wrong"),
    ("-m", "gratis", "bench", "wrong"),
    ("-m", "gratis", "doctor", "--port", "wrong"),
    ("docker/install.py", "--bogus", "wrong"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.starts
def test_each_command_tells_it_in_one_line(command: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "wrong" in done.stderr


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.starts
def test_make_hands_a_name_on_as_it_is() -> None:
    words = ["make", "-n", "INSTALLED=", "SRC=it's", "OUT=a 'b' $$c", "shards"]
    alone = {"PATH": os.environ["PATH"]}  # `make test` hands its own variables on
    said = subprocess.run(
        words, cwd=ROOT, env=alone, capture_output=True, text=True, check=True, timeout=60
    ).stdout
    assert shlex.split(said)[2:] == ["--src", "it's", "--out", "a 'b' $c"]


@pytest.mark.starts
def test_on_a_terminal_too() -> None:
    """Where tyro writes in colours."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "gratis", "status", "--port", "x"]
    with os.fdopen(ours, "rb", buffering=0) as screen:
        done = subprocess.run(
            command,
            cwd=ROOT,
            stdout=theirs,
            stderr=theirs,
            env=os.environ | {"TERM": "xterm"},
            timeout=60,
            check=False,
        )
        os.close(theirs)
        assert done.returncode == 2
        assert (
            screen.read(4096)
            == b"error: --port x: it takes a whole number; gratis status --help says more\r\n"
        )
