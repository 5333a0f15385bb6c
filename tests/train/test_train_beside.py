"""What a command has beside its run: the status server, and a folder for its ranks' last words."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from ports import free_port
from small import ROOT

from gratis.errors import GratisError
from gratis.locks import hold
from gratis.train.launcher import status_server
from gratis.train.launcher.agent import folder_of_error_files
from gratis.train.launcher.status_server import start_server


@pytest.fixture(autouse=True)
def _ports(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if each test were a command of its own, at ports that are free."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(status_server, "FIRST_PORT", free_port())
    monkeypatch.setattr(status_server, "CHOSEN", [])
    yield
    for mark in status_server.CHOSEN:
        mark.close()


def listens(port: int) -> None:
    for _ in range(600):
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    pytest.fail("no server")


def ended(server: subprocess.Popen[bytes] | None, number: int) -> None:
    assert server is not None
    server.send_signal(number)
    server.wait(60)


@pytest.mark.starts
def test_two_commands_at_once_take_two_ports(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second looks before the first's server listens."""
    servers = [start_server(tmp_path / name, None) for name in "ab"]
    try:
        ports = [
            int(port)
            for port in re.findall(r"status: http://127\.0\.0\.1:(\d+)", capsys.readouterr().out)
        ]
        assert len(set(ports)) == 2
        for port in ports:
            listens(port)
    finally:
        for server in servers:
            ended(server, signal.SIGTERM)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.starts
def test_a_server_that_is_lost_is_told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], number: int
) -> None:
    server = start_server(tmp_path, None)
    listens(status_server.FIRST_PORT)
    ended(server, number)
    for thread in threading.enumerate():
        if thread.name == "status":
            thread.join(60)
    told = capfd.readouterr().err
    if number == signal.SIGTERM:  # as the command itself ends it
        assert told == ""
    else:
        assert re.fullmatch(
            r"warning: the status server was killed by SIGKILL; .* -m gratis status .* shows it\n",
            told,
        )


PARENT = """
import signal, sys
from pathlib import Path
from gratis.train.launcher.status_server import start_server
start_server(Path(sys.argv[1]), int(sys.argv[2]))
signal.pause()
"""


@pytest.mark.starts
def test_the_server_of_a_command_that_was_killed_ends_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its port is the next command's."""
    port = status_server.FIRST_PORT
    command = [sys.executable, "-c", PARENT, str(tmp_path), str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as parent:
        listens(port)
        parent.kill()
    new = start_server(tmp_path, port)
    listens(port)
    monkeypatch.setattr(status_server, "END_S", 0.5)
    with pytest.raises(GratisError, match=f"--port {port} is taken"):  # its command lives
        start_server(tmp_path, port)
    assert new is not None
    assert new.poll() is None
    ended(new, signal.SIGTERM)


def test_words_of_launchers_that_were_killed_go_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    killed, living, begun = (
        tmp_path / f"gratis-ranks-{name}" for name in ("killed", "living", "begun")
    )
    other = tmp_path / "other"
    for folder in (killed, living, begun, other):
        (folder / "attempt").mkdir(parents=True)
        if folder != begun:
            (folder / "lock").touch()
            os.utime(folder, (0, 0))
    held = hold(living / "lock")
    assert held is not None
    with held, folder_of_error_files() as words:
        assert Path(words).parent == tmp_path
        os.utime(words, (0, 0))
        with folder_of_error_files() as more:
            assert {path.name for path in tmp_path.iterdir()} == {
                living.name,
                begun.name,
                other.name,
                Path(words).name,
                Path(more).name,
            }
    assert {path.name for path in tmp_path.iterdir()} == {living.name, begun.name, other.name}
