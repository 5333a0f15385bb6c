"""The page's choices in a real browser, by click and by key, at the widths of a phone, a laptop and
a large screen: what is shown fits, what is chosen is shown, and links lead to where they say."""

from __future__ import annotations

import re
import shutil
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from browser import Page, binary, chromium
from PIL import Image
from served import ROOT, RunWriter, get, serving

from gratis.records import GpuCounters

pytestmark = [
    pytest.mark.starts,
    pytest.mark.skipif(binary() is None, reason="needs Debian's package chromium"),
]
STYLE = ROOT / "gratis" / "server" / "static" / "style.css"
WIDTHS = (390, 1280, 1920)
GPU = GpuCounters(
    busy=0.875,
    nvjpg_busy=0.4,
    memory_bytes=12 * 10**9,
    memory_total_bytes=80 * 10**9,
    power_w=512.0,
)


def write_run(path: Path, *, epochs: int, gpu: GpuCounters | None, world: int = 2) -> RunWriter:
    """Epochs of forty steps, the second of them the best."""
    run = RunWriter(path, world=world)
    run.start("gratis train --shards /home/somebody/shards --gpus 2")
    for epoch in range(epochs):
        for step in range(40 * epoch + 10, 40 * epoch + 50, 10):
            startup = {"wait_s": 9.0} if step == 10 else {}
            run.step(
                step, loss=200 / (step + 20), gpu=gpu, ranks=dict.fromkeys(range(world), startup)
            )
        top1 = 0.5 + (epoch == 1) / 4
        record = {"views": 1, "images": 200, "top1": top1, "top5": 0.9, "nll": 1.0, "wall_s": 2.0}
        run.writers[0].write("eval", record, epoch=epoch + 1, step=40 * (epoch + 1))
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, the newest of three epochs and on GPUs."""
    root = tmp_path_factory.mktemp("site") / "runs"
    write_run(root / "old one", epochs=2, gpu=None, world=1).end("finished")
    new = write_run(root / "new", epochs=3, gpu=GPU)
    Image.new("RGB", (896, 336), "teal").save(new.path / "latest.jpg")
    return root


@contextmanager
def opened(url: str, profile: Path, width: int = 1280, address: str = "") -> Iterator[Page]:
    with chromium(profile) as page:
        page.size(width, 1000)
        page.open(f"{url}/{address}")
        page.wait("document.querySelectorAll('#chart-loss path').length")
        yield page


def text(page: Page, selector: str) -> str:
    return str(page.run(f"document.querySelector('{selector}').textContent"))


def wide(page: Page) -> list[int]:
    """Pixels that the document, the ranks' table and its frame take across."""
    sizes = page.run(
        "['html', 'table', '.scroll'].map((one) => document.querySelector(one).scrollWidth)"
    )
    return [int(size) for size in sizes]


def test_everything_is_there_and_fits_every_screen(runs: Path, tmp_path: Path) -> None:
    with serving(runs) as url, opened(url, tmp_path) as page:
        for width in WIDTHS:
            for dark in (False, True):
                page.size(width, 1000, dark=dark)
                page.wait(f"innerWidth == {width}")
                document, table, frame = wide(page)
                assert document <= width
                assert table <= frame
        tiles = text(page, "#tiles")
        for part in (
            "4epoch of 50 of 40 steps, 0 %",  # the fourth is about to begin
            "120step of 20060 %, 80 s of training to go",
            "2.5 ×loader headroom",
            "88 %GPU use",
            "12.00 GBGPU memory of 80 GB",
            "2.15 GBprocess memory",  # two processes of a gibibyte
            "50.0 %validation top-1 error",
            "2best epoch: 25.0 % top-1 error",
        ):
            assert part in tiles, tiles
        bars = "[...document.querySelectorAll('#tiles progress')].map((one) => one.position)"
        assert page.run(bars) == [0, 0.6]
        shown = "[...document.querySelectorAll('.charts figure')].filter((one) => one.offsetWidth)"
        captions = page.run(f"{shown}.map((one) => one.firstChild.textContent)")
        assert [words.split(",")[0] for words in captions] == [
            "Throughput",
            "Share of time training waits for data",
            "Error",
            "Training loss",
            "Learning rate",
            "GPU use",
            "Memory",
        ]
        assert "fullest GPU 12 GB" in text(page, "#chart-memory .legend")
        assert "9.0 s until the first batch, then 1.0 s" in text(page, "#startup")
        assert page.run("document.querySelectorAll('#chart-error circle.best').length") == 1
        assert "decoded by the engine23,760, by another decoder 240" in text(page, "#facts")
        assert text(page, "#folder") == "runs/new"
        assert text(page, "#command") == "gratis train --shards .../shards --gpus 2"
        unnamed = (
            "[...document.querySelectorAll('input, select, button, progress, svg[tabindex]')]"
            ".filter((one) => one.checkVisibility() && !(one.labels?.length || one.ariaLabel || "
            "one.getAttribute('aria-label') || one.textContent.trim())).map((one) => one.outerHTML)"
        )
        assert page.run(unnamed) == []
        assert page.console == []


def test_long_names_and_words_fit_every_screen(tmp_path: Path) -> None:
    name = "n" * 128
    run = RunWriter(tmp_path / "runs" / name, world=16)
    run.start(f"gratis train --shards https://host.example/{'x' * 200} --wire float16")
    run.step(10)
    run.step(20, gpu=GPU)
    run.writers[0].write("warning", {"message": "w" * 290})
    write_run(tmp_path / "runs" / "other", epochs=1, gpu=None)
    with (
        serving(tmp_path / "runs") as url,
        opened(url, tmp_path / "profile", address=f"#run={name}&compare=other") as page,
    ):
        page.wait("document.querySelectorAll('#chart-loss path.other').length")
        for width in WIDTHS:
            page.size(width, 1000)
            page.wait(f"innerWidth == {width}")
            document, table, frame = wide(page)
            assert document <= width
            assert table <= frame
        assert page.run("document.querySelectorAll('#rank-rows tr').length") == 16
        assert page.console == []


def test_a_run_on_a_cpu_shows_cores_instead_of_gpus(runs: Path, tmp_path: Path) -> None:
    with serving(runs) as url, opened(url, tmp_path, address="#run=old%20one") as page:
        assert "2.0CPU cores at work" in text(page, "#tiles")
        assert page.run("document.querySelector('#chart-gpu').hidden") is True
        assert page.run("document.querySelector('#chart-cpu').hidden") is False
        assert "GPU" not in text(page, "#rank-head")
        # over, and its start-up, of which nine of ten seconds were waited, in no rate
        assert text(page, "#words").startswith("Over the whole attempt: Training takes 100")
        assert "1.0 %" in text(page, "#bars")
        assert "There is no picture" in text(page, "#picture-words")


def test_charts_go_over_steps_epochs_or_time_and_remember(runs: Path, tmp_path: Path) -> None:
    """By click and by key; over a whole minute of events, as written here, time is seconds."""
    axis = "document.querySelector('#chart-loss .axis').textContent"
    most = (
        "Math.max(...[...document.querySelectorAll('#chart-loss .tick')]"
        ".map((one) => Number(one.textContent.replace(',', ''))))"
    )
    with serving(runs) as url, opened(url, tmp_path) as page:
        page.wait(f"{most} >= 100 && {most} <= 120")
        assert page.run(axis) == "step"
        page.click("[value=epochs]")
        page.wait(f"{axis} == 'epoch'")
        page.wait(f"{most} >= 2.5 && {most} <= 3")
        page.press("ArrowRight")
        page.wait(f"{axis} == 's'")
        page.open("about:blank")
        page.open(url)
        page.wait("document.querySelectorAll('#chart-loss path').length")
        assert page.run(axis) == "s"
        page.run("document.querySelector('#chart-loss svg').focus()")
        page.click("[value=steps]")
        page.run("document.querySelector('#chart-loss svg').focus()")
        page.press("ArrowLeft")
        page.wait(
            "document.querySelector('#chart-loss .legend').textContent.includes('at step 120')"
        )
        page.press("ArrowLeft")
        page.wait(
            "document.querySelector('#chart-loss .legend').textContent.includes('at step 110')"
        )
        assert "loss 1.54" in text(page, "#chart-loss .legend")  # 200 / 130
        page.press("Escape")
        page.wait("!document.querySelector('#chart-loss .legend').textContent.includes('step')")


def test_two_runs_in_one_chart(runs: Path, tmp_path: Path) -> None:
    """Chosen from the list, it is drawn dashed and kept in the address; one that is not there is
    said not to be."""
    dashed = "document.querySelectorAll('#chart-loss path.other').length"
    with serving(runs) as url, opened(url, tmp_path) as page:
        assert page.run(dashed) == 0
        page.run("document.querySelector('#compare').focus()")
        page.press("ArrowDown")
        page.wait(f"{dashed} == 1")
        assert page.run("location.hash") == "#compare=old%20one"
        assert "dashed, and in brackets: old one (finished)" in text(page, "#compare-words")
        assert "2.00" in text(page, "#chart-loss .legend")  # 200 / 100, at its 80th step
        assert page.run("document.querySelectorAll('#chart-error circle.best').length") == 2
        for width in WIDTHS:
            page.size(width, 1000)
            page.wait(f"innerWidth == {width}")
            assert wide(page)[0] <= width
        page.run("location.hash = '#run=new&compare=never'")
        page.wait("document.querySelector('#compare-words').textContent == 'never is not here'")
        page.wait(f"{dashed} == 0")
        assert text(page, "#state") == "running"
        page.run("location.hash = ''")
        page.wait("document.querySelector('#compare-words').textContent == ''")


def test_columns_of_the_ranks_are_chosen_and_remembered(runs: Path, tmp_path: Path) -> None:
    heads = "[...document.querySelectorAll('#rank-head th')].map((one) => one.textContent)"
    with serving(runs) as url, opened(url, tmp_path) as page:
        page.wait("document.querySelector('#picture').naturalWidth == 896")  # nothing moves now
        before = page.run(heads)
        assert "decode" in before
        assert "power" not in before
        page.click("#columns summary")
        page.click("[value=decode]")
        page.wait(f"!{heads}.includes('decode')")
        page.click("[value=power]")
        page.wait(f"{heads}.includes('power')")
        assert "512 W" in text(page, "#rank-rows")
        page.open("about:blank")
        page.open(url)
        page.wait("document.querySelectorAll('#rank-head th').length")
        assert set(page.run(heads)) == {*before, "power"} - {"decode"}
        every = "document.querySelectorAll('#columns input:not(:checked)')"
        page.run(f"{every}.forEach((one) => one.click())")
        assert len(page.run(heads)) == 21
        document, table, frame = wide(page)
        assert (document, table <= frame) == (1280, True)
        page.size(390, 1000)
        page.wait("innerWidth == 390")
        assert wide(page)[0] <= 390


def test_a_picture_that_is_gone_says_so(runs: Path, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    shutil.copytree(runs / "new", root / "new")
    words, hidden = "#picture-words", "document.querySelector('#picture').hidden"
    with serving(root) as url, opened(url, tmp_path / "profile") as page:
        page.wait("document.querySelector('#picture').naturalWidth == 896")
        (root / "new" / "latest.jpg").unlink()
        page.wait(
            f"document.querySelector('{words}').textContent.startsWith('There is no picture')"
        )
        assert page.run(hidden) is True
        assert page.run("document.querySelector('#augmented').hidden") is False
        (root / "new" / "latest.jpg").write_text("no JPEG")
        page.wait(f"document.querySelector('{words}').textContent.includes('cannot be shown')")
        assert page.run(hidden) is True
        Image.new("RGB", (64, 32), "red").save(root / "new" / "latest.jpg")
        page.wait("document.querySelector('#picture').naturalWidth == 64")
        page.wait(f"!{hidden}")
        assert "As training saw them" in text(page, words)


class Prefixed(BaseHTTPRequestHandler):
    """A reverse proxy that serves `upstream` below /deep/gratis/ alone."""

    upstream = ""

    def do_GET(self) -> None:
        if not self.path.startswith("/deep/gratis/"):
            self.send_error(404)
            return
        address = self.upstream + self.path.removeprefix("/deep/gratis")
        try:
            answer: Any = urllib.request.urlopen(address, timeout=60)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.headers["content-type"])
            self.end_headers()
            while line := answer.readline():
                try:
                    self.wfile.write(line)
                except OSError:  # the browser has left
                    return

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def proxied(upstream: str) -> Iterator[str]:
    handler = type("Handler", (Prefixed,), {"upstream": upstream})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/deep/gratis"
    finally:
        server.shutdown()
        server.server_close()


def test_every_address_is_right_behind_a_proxys_prefix(runs: Path, tmp_path: Path) -> None:
    with serving(runs) as upstream, proxied(upstream) as url, opened(url, tmp_path) as page:
        page.wait("document.querySelector('#picture').naturalWidth == 896")
        page.run("location.hash = '#compare=old%20one'")
        page.wait("document.querySelectorAll('#chart-loss path.other').length")
        links = page.run("[...document.querySelectorAll('a')].map((one) => one.href)")
        assert len(links) >= 4
        for link in links:
            assert link.startswith(f"{url}/")
            assert get(link)[0] == 200
        assert f"{url}/status/new" in links
        assert not re.search(r"(?<![\w.])/\w", text(page, "#page")), "a path from the root"
        assert page.console == []


def test_colours_stand_out_from_their_grounds() -> None:
    """Text by 4.5 to 1, lines of charts by 3 to 1, as WCAG 2.2 has it, light and dark."""
    style = STYLE.read_text()
    light, dark = re.findall(r":root \{(.*?)\}", style, re.DOTALL)[:2]
    themes = [dict(re.findall(r"--([\w-]+): (#\w+)", part)) for part in (light, light + dark)]
    texts = [("ink", "card"), ("ink", "ground"), ("quiet", "card"), ("quiet", "ground")]
    texts += [("a", "card"), ("card", "a"), ("ink", "line")]
    texts += [
        (tone, ground) for tone in ("good", "warn", "bad") for ground in ("card", tone + "-soft")
    ]
    for theme in themes:
        for ink, ground in texts:
            assert contrast(theme[ink], theme[ground]) >= 4.5, (ink, ground)
        for line in "abcd":
            assert contrast(theme[line], theme["card"]) >= 3, line


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
