#!/usr/bin/env bash
# webdataset 1.0.2, Python 3.11, 2026-12-01.
#
# Guess: samples that TarWriter writes are the samples that WebDataset reads. Their keys may have a dot inside (known:
#   it splits the key there); one that begins with a dot, as hidden files do, is refused or comes back.
# Seen: the writer takes it. The reader leaves out such a sample at the top of the archive without a word. Inside a folder
#   it takes the folder as the key and the rest as the extension: all such samples of a folder become one.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q numpy==2.4.6 webdataset==1.0.2
cd "$work"
"$work/venv/bin/python" -W ignore - <<'EOF'
import importlib.metadata
import sys

import webdataset

print("webdataset", importlib.metadata.version("webdataset"))


def read(*keys):
    with webdataset.TarWriter("a.tar") as writer:
        for key in keys:
            writer.write({"__key__": key, "txt": key})
    samples = webdataset.WebDataset("a.tar", shardshuffle=False)
    hidden = ("__url__", "__local_path__")
    return [{name: sample[name] for name in sorted(sample) if name not in hidden} for sample in samples]


seen = [read("a", "b"), read(".a", "b"), read("folder/.a", "folder/.b")]
for written, samples in zip(("a, b", ".a, b", "folder/.a, folder/.b"), seen):
    print(f"written: {written}; read: {samples}")
together = {"__key__": "folder/", "a.txt": b"folder/.a", "b.txt": b"folder/.b"}
if [len(samples) for samples in seen] != [2, 1, 1] or seen[2] != [together]:
    sys.exit("changed: webdataset reads such names otherwise")
print("as seen: a sample is lost, and two become one")
EOF
