"""The Dockerfile's own lines, executed in clean Debian roots: what an image build does, without a
Docker engine.

Every line is read from the file, so the two cannot drift. Only its base image is another: Debian's
debootstrap makes it of the mirror that this machine's apt uses. `make prove` runs it, as root: some
minutes, and 12 GB of disk."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
PASSED_ON = re.compile(r"PIP_\w+|\w+_proxy|\w+_PROXY")
NAMESPACE = """
set -e
mount -t proc proc "$1/proc"; mount --rbind /dev "$1/dev"
for folder in $3; do mkdir -p "$1$folder"; mount --bind "$folder" "$1$folder"; done
exec chroot --userspec="$2" "$1" /bin/sh -c "$4"
"""


def may_unshare() -> bool:
    return (
        os.getuid() == 0
        and subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0
    )


pytestmark = [
    pytest.mark.prove,
    pytest.mark.skipif(
        shutil.which("debootstrap") is None, reason="needs debootstrap, a package of Debian"
    ),
    pytest.mark.skipif(
        not may_unshare(), reason="needs root and the right to make mount namespaces"
    ),
]


@dataclass
class Stage:
    """A root, and what the lines so far set for those after them."""

    root: Path
    folder: str = "/"
    user: str = "0"
    env: dict[str, str] = field(
        default_factory=lambda: {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        }
    )
    healthcheck: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)

    def start(self, command: str) -> subprocess.Popen[str]:
        """Runs it in the root, in mounts that go with it; names, certificates, package indexes are
        this machine's."""
        for name in ("resolv.conf", "hosts"):
            shutil.copy(f"/etc/{name}", self.root / "etc")
        (self.root / BUNDLE.parent.relative_to("/")).mkdir(parents=True, exist_ok=True)
        shutil.copy(BUNDLE, self.root / BUNDLE.relative_to("/"))
        passed = {name: value for name, value in os.environ.items() if PASSED_ON.fullmatch(name)}
        home = "/root" if self.user == "0" else "/home/gratis"
        words = [f"{name}={value}" for name, value in {**passed, **self.env, "HOME": home}.items()]
        inside = f"cd {self.folder} && exec env -i {shlex.join(words)} sh -c {shlex.quote(command)}"
        shell = [
            *"unshare -m sh -c".split(),
            NAMESPACE,
            "sh",
            str(self.root),
            f"{self.user}:{self.user}",
            " ".join(local_indexes()),
            inside,
        ]
        return subprocess.Popen(shell, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def run(self, command: str) -> str:
        process = self.start(command)
        said, _ = process.communicate()
        assert process.returncode == 0, f"{command}\n{said[-6000:]}"
        return said


def local_indexes() -> list[str]:
    """Folders of this machine that its pip looks for packages in."""
    said = subprocess.run(
        ["python3", "-m", "pip", "config", "list"], capture_output=True, text=True
    ).stdout
    return sorted(
        {path for path in re.findall(r"(?:file://)?(/[\w./-]+)", said) if Path(path).is_dir()}
    )


def instructions() -> list[tuple[str, str]]:
    """(instruction, the rest), continued lines joined, comments left out."""
    text = (ROOT / "docker" / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [
        (word, rest)
        for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line.strip())
    ]


def mirror(release: str) -> str:
    said = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(ORIGIN) $(CODENAME) $(REPO_URI)"],
        capture_output=True,
        text=True,
    ).stdout
    found = [line.split()[2] for line in said.splitlines() if line.startswith(f"Debian {release} ")]
    if not found:
        pytest.skip(f"needs a mirror of Debian {release} among this machine's apt sources")
    return found[0]


def copy(arguments: str, stage: Stage, stages: dict[str, Stage]) -> None:
    """COPY, of single names or of the whole context as .dockerignore leaves it."""
    options = [word for word in arguments.split() if word.startswith("--")]
    *sources, target = [word for word in arguments.split() if not word.startswith("--")]
    where = stage.root / stage.folder.lstrip("/") / target
    where.parent.mkdir(parents=True, exist_ok=True)
    if origin := next(
        (word.partition("=")[2] for word in options if word.startswith("--from=")), None
    ):
        # hard links: the environment is several GB, and nobody changes it in either root
        subprocess.run(
            ["cp", "-al", stages[origin].root / sources[0].lstrip("/"), where], check=True
        )
        return
    if sources == ["."]:
        kept = (ROOT / ".dockerignore").read_text().splitlines()
        sources = [line[1:] for line in kept if line.startswith("!")]
    for source in sources:
        into = where / Path(source).name if target.endswith("/") or target in (".", "./") else where
        if (ROOT / source).is_symlink():
            into.symlink_to((ROOT / source).readlink())
        elif (ROOT / source).is_dir():
            shutil.copytree(
                ROOT / source, into, ignore=shutil.ignore_patterns("__pycache__", "*.so")
            )
        else:
            into.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / source, into)
        if "--chown=gratis:gratis" in options:
            subprocess.run(["chown", "-R", "1000:1000", into], check=True)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """The last stage, after all lines."""
    folder = tmp_path_factory.mktemp("image")
    release = re.search(r"debian:(\w+)", (ROOT / "docker" / "Dockerfile").read_text())
    assert release is not None
    base = folder / "base"
    command = ["debootstrap", "--variant=minbase", release[1], str(base), mirror(release[1])]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    stages: dict[str, Stage] = {}
    stage = Stage(base)
    for number, (word, rest) in enumerate(instructions()):
        if word == "FROM":
            stage = Stage(folder / f"stage-{number}")
            stages[rest.rpartition(" AS ")[2]] = stage
            subprocess.run(["cp", "-a", base, stage.root], check=True)
        elif word == "RUN":
            stage.run(rest)
        elif word == "COPY":
            copy(rest, stage, stages)
        elif word == "WORKDIR":
            stage.folder = rest
            (stage.root / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif word == "USER":
            stage.user = rest
        elif word == "ENV":
            pairs = (pair.partition("=") for pair in shlex.split(rest))
            stage.env |= {
                name: value.replace("$PATH", stage.env["PATH"]) for name, _, value in pairs
            }
        elif word == "HEALTHCHECK":
            stage.healthcheck = json.loads(rest.partition("CMD ")[2])
        elif word == "CMD":
            stage.command = json.loads(rest)
        else:
            pytest.fail(f"this test does not know what {word} does")
    yield stage
    shutil.rmtree(folder, ignore_errors=True)


def test_what_compiles_the_network_is_there_and_no_root(image: Stage) -> None:
    code = "from gratis.train.mesh.device import lacks_for_compiling as lacks; print(lacks())"
    assert image.run(f"python -c {shlex.quote(code)}").strip() == "None"
    assert image.run("id -u").strip() == "1000"
    assert "pillow-simd" in image.run("gratis doctor")
    assert "usage: " in image.run(shlex.join([*image.command, "--help"]))


def test_webp_and_compressed_tiff_are_built_in(image: Stage) -> None:
    code = "from PIL import features; print(*map(features.check, ('webp', 'libtiff')))"
    assert image.run(f"python -c {shlex.quote(code)}").strip() == "True True"
    assert "Pillow is built without" not in image.run("gratis doctor")


def test_healthcheck_tells_a_server_from_none(image: Stage) -> None:
    check = shlex.join(image.healthcheck).replace(":8000", ":8731")
    assert "sick" in image.run(f"{check} 2>/dev/null || echo sick")
    server = image.start("exec gratis status --port 8731")
    try:
        assert server.stdout is not None
        assert server.stdout.readline().startswith("serving")
        image.run(check)
    finally:
        server.terminate()
        server.communicate(timeout=20)


def test_make_train_works_inside(image: Stage) -> None:
    """From nothing: draws, shards, trains, evaluates, as the user of the image."""
    began = time.monotonic()
    said = image.run("make train EPOCHS=1 PORT=8732")
    assert re.search(r"^result top1=", said, re.MULTILINE), said[-2000:]
    print(f"make train EPOCHS=1 inside: {time.monotonic() - began:.0f} s")


def test_make_test_is_green_inside(image: Stage) -> None:
    """The whole suite, which takes its time; GRATIS_INSIDE="-m 'not slow'" leaves most of that
    out."""
    arguments = f"-p no:cacheprovider -ra {os.environ.get('GRATIS_INSIDE', '')}"
    began = time.monotonic()
    said = image.run(f"make test ARGS={shlex.quote(arguments)}")
    print(f"make test {arguments}: {time.monotonic() - began:.0f} s\n{said[-4000:]}")
    assert re.search(r"^\d+ passed", said, re.MULTILINE), said[-4000:]
    assert " failed" not in said, said[-4000:]
