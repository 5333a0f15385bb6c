"""The page in a real browser: it loads, follows a run live, says what became of it, and logs no error."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from browser import binary, chromium
from PIL import Image
from served import RunWriter, serving, writing

pytestmark = pytest.mark.skipif(binary() is None, reason="needs Debian's package chromium")
TOKEN = "correct-horse-battery-staple"


def test_the_page_follows_a_run_and_outlives_its_trainer(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    with serving(root) as url, chromium(tmp_path / "profile") as page:
        page.size(1280, 1600)
        page.open(url)
        page.wait("!document.querySelector('#empty')?.hidden")
        with writing(root / "live", world=2) as process:
            page.wait("document.querySelector('#kind')?.textContent == 'Compute-bound: the loader keeps up'")
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
        with serving(tmp_path / "runs", "--port", url.rpartition(":")[2], env={"GRATIS_TOKEN": TOKEN}):
            page.wait("document.querySelector('#notice').hidden", 20)
            run.step(20)
            page.wait("document.querySelector('#tiles').textContent.includes('20step of 200')", 20)
