"""The page in a real browser: it loads, follows a run live, shows how it ended, and logs no
error."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from browser import binary, chromium
from PIL import Image
from served import ROOT, RunWriter, get, serving, wait_for, writing

pytestmark = pytest.mark.skipif(binary() is None, reason="needs Debian's package chromium")
TOKEN = "correct-horse-battery-staple"


@pytest.mark.starts
def test_the_page_follows_a_run_and_outlives_its_trainer(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    with serving(root) as url, chromium(tmp_path / "profile") as page:
        page.size(1280, 1600)
        page.open(url)
        page.wait("!document.querySelector('#empty')?.hidden")
        with writing(root / "live", world=2) as process:
            page.wait(
                "document.querySelector('#kind')?.textContent == 'Compute-bound: the loader "
                "keeps up'"
            )
            assert "2.5 times" in page.run("document.querySelector('#words').textContent")
            assert page.run("document.querySelectorAll('#rank-rows tr').length") == 2
            steps = "document.querySelector('#tiles').textContent.includes('{}')"
            page.wait(steps.format("20step of 200"))
            page.wait("document.querySelectorAll('#chart-speed path.stroke-a').length")
            grower = RunWriter(root / "live", world=2)
            grower.step(30, ranks={rank: {"wait_s": 9.0, "read_s": 60.0} for rank in (0, 1)})
            page.wait(steps.format("30step of 200"))
            page.wait("document.querySelector('#kind').textContent.startsWith('Input-bound: read')")
            assert page.run("document.querySelector('#augmented').hidden")
            Image.new("RGB", (64, 32), "red").save(root / "live" / "latest.jpg")
            page.wait("document.querySelector('#picture').naturalWidth == 64")
            process.send_signal(signal.SIGKILL)
            process.wait()
            page.wait("document.querySelector('#state').textContent == 'crashed'")
            assert "is gone" in page.run("document.querySelector('#reason').textContent")
            assert "ago, at" in page.run("document.querySelector('#age').textContent")
        page.size(390, 800, dark=True)
        page.wait("innerWidth == 390")
        assert page.run("document.documentElement.scrollWidth") <= 390
        assert page.console == []
        if "GRATIS_SHOTS" in os.environ:  # a folder to keep the picture in
            page.shoot(Path(os.environ["GRATIS_SHOTS"]) / "page.png")


@pytest.mark.slow
def test_the_page_follows_a_real_run_to_its_end(tmp_path: Path, sample_shards: Path) -> None:
    command = [
        sys.executable,
        *"-m gratis train --shards".split(),
        str(sample_shards),
        "--runs",
        str(tmp_path / "runs"),
    ]
    small = ["--recipe", "sample", "--epochs", "2", "--width", "0.25", "--hidden", "512"]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with chromium(tmp_path / "profile") as page:
        process = subprocess.Popen(
            [*command, *small, "--port", str(port)],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            assert wait_for(lambda: answers(f"http://127.0.0.1:{port}/livez"), 30)
            page.open(f"http://127.0.0.1:{port}/")
            page.wait("document.querySelector('#state')?.textContent == 'running'", 60)
            first = page.run("document.querySelector('#tiles').textContent")
            page.wait("document.querySelector('#kind').textContent.includes('bound')", 30)
            page.wait("document.querySelector('#picture').naturalWidth > 100", 30)
            page.wait(f"document.querySelector('#tiles').textContent != {json.dumps(first)}", 30)
            assert page.console == []
            page.wait("document.querySelector('#state').textContent == 'finished'", 90)
            page.wait(
                "document.querySelector('#notice').textContent.includes('status server has "
                "closed')",
                30,
            )
            assert "64step of 64" in page.run("document.querySelector('#tiles').textContent")
            assert process.wait(timeout=30) == 0
        finally:
            process.terminate()
            process.wait()


@pytest.mark.slow
def test_the_page_follows_the_shard_stage_of_training_on_a_drawn_sample(
    tmp_path: Path, sample_source: Path
) -> None:
    """`gratis train` without shards: they are made under the page's eyes, and then it turns to
    training."""
    (tmp_path / "sample").mkdir()
    (tmp_path / "sample" / "source").symlink_to(sample_source)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    small = ["--epochs", "9", "--width", "0.125", "--hidden", "128", "--port", str(port)]
    with chromium(tmp_path / "profile") as page:
        process = subprocess.Popen(
            [sys.executable, "-m", "gratis", "train", *small],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            assert wait_for(lambda: answers(f"http://127.0.0.1:{port}/livez"), 90)
            page.open(f"http://127.0.0.1:{port}/")
            page.wait(
                "['Making shards', 'The shards are "
                "made'].includes(document.querySelector('#kind')?.textContent)",
                90,
            )
            assert page.run("document.querySelector('#shards').hidden") is False
            assert " of 1,200 images" in page.run(
                "document.querySelector('#shard-words').textContent"
            )
            page.wait("document.querySelector('#state').textContent == 'running'", 120)
            assert page.run("document.querySelector('#shards').hidden") is True
            assert page.console == []
        finally:
            process.terminate()
            assert process.wait(timeout=60) == 75


def answers(url: str) -> bool:
    try:
        return get(url)[0] == 200
    except OSError:
        return False


@pytest.mark.starts
def test_the_page_asks_for_the_token_and_reconnects(tmp_path: Path) -> None:
    run = RunWriter(tmp_path / "runs" / "a")
    run.start()
    run.step(10)
    with chromium(tmp_path / "profile") as page:
        with serving(tmp_path / "runs", env={"GRATIS_TOKEN": TOKEN}) as url:
            page.open(url)
            page.wait("document.querySelector('#login')?.hidden === false")
            page.run(f"document.querySelector('#token').value = '{TOKEN}'")
            page.run("document.querySelector('#enter button').click()")
            page.wait("document.querySelector('#state').textContent == 'running'")
            assert page.run("location.href").rstrip("/") == url
        page.wait("document.querySelector('#notice').hidden === false")
        with serving(
            tmp_path / "runs", "--port", url.rpartition(":")[2], env={"GRATIS_TOKEN": TOKEN}
        ):
            page.wait("document.querySelector('#notice').hidden", 20)
            run.step(20)
            page.wait("document.querySelector('#tiles').textContent.includes('20step of 200')", 20)


@pytest.mark.starts
def test_the_page_says_that_a_run_is_gone_and_not_the_server(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    for name in ("one", "two"):
        run = RunWriter(root / name)
        run.start()
        run.step(10)
    notice = (
        "!document.querySelector('#notice').hidden && document.querySelector('#notice').textContent"
    )
    with serving(root) as url, chromium(tmp_path / "profile") as page:
        page.open(f"{url}/#run=never")
        page.wait(f"({notice} || '').startsWith('There is no run “never” here')")
        page.run("location.hash = '#100%'")
        page.wait(f"({notice} || '').startsWith('There is no run “100%” here')")
        page.run("location.hash = '#run=one'")
        page.wait("document.querySelector('#state').textContent == 'running'")
        page.wait("document.querySelector('#notice').hidden")
        assert page.console == []
        shutil.rmtree(root / "one")
        page.wait(f"({notice} || '').startsWith('There is no run “one” here')", 20)
        page.run("location.hash = ''")
        page.wait("document.querySelector('#state').textContent == 'running'")
        shutil.rmtree(root / "two")
        page.wait("!document.querySelector('#empty').hidden", 20)
        page.wait("document.querySelector('#notice').hidden", 20)
        RunWriter(root / "three").start()
        page.wait("!document.querySelector('#page').hidden", 20)
