"""What the largest jobs need at their peak, in GB of memory: `python tools/memory.py`. TMPDIR must hold all pictures.

What a job holds itself is counted. Files that it has mapped lie in memory only as long as nobody else needs it, so they
are shown apart. Linux tells the two from each other, and other systems do not."""

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from trainprove_nb.evidence.release_log import COLUMNS

MOST = 3.0  # GB
SUSPECT = """
from zlib import crc32

import numpy as np

def small(prompt, seed):
    return np.random.default_rng([crc32(prompt.encode()), seed]).integers(0, 255, (16, 16, 3), np.uint8)

def answers(prompts, seeds):
    found = [small(*question) for question in zip(prompts, seeds)]
    return np.stack(found).repeat({size} // 16, 1).repeat({size} // 16, 2)
"""
JOBS = {
    "audit of a log": "from trainprove_nb.cli import main; main(['audit', 'run', 'audit.yaml'])",
    "read_pairs": "from trainprove_nb.data.folders import read_pairs; read_pairs('pairs')",
    "near_groups": (
        "from trainprove_nb.data.folders import read_pairs; from trainprove_nb.data.duplicates import "
        "near_groups; near_groups(read_pairs('pairs'))"
    ),
}


def picture(k, size, file):
    "A smooth picture, as a JPEG."
    grain = np.random.default_rng(k).integers(0, 255, (16, 16, 3), np.uint8)
    Image.fromarray(grain).resize((size, size)).save(file, quality=90)


def write(home, n, size):
    "A log of n pictures, three a request; the same pictures as pairs; and an audit."
    log, pairs = home / "log", home / "pairs"
    (log / "pictures").mkdir(parents=True)
    pairs.mkdir()
    rows = []
    for k in tqdm(range(n), desc="pictures"):
        file = log / "pictures" / f"{k}.jpg"
        picture(k, size, file)
        os.link(file, pairs / file.name)
        side, digest = "withheld" if k % 3 else "released", hashlib.sha256(file.read_bytes())
        about = [f"thing {k // 3}", "alice", "", str(k // 3), k % 3, side, k, "{}"]
        rows.append([*about, digest.hexdigest(), f"pictures/{file.name}"])
    table = pd.DataFrame(rows, columns=COLUMNS)
    table.to_parquet(log / "log.parquet")
    told = [{"file_name": f"{k}.jpg", "text": f"thing {k // 3}"} for k in range(n)]
    (pairs / "metadata.jsonl").write_text("\n".join(map(json.dumps, told)))
    (home / "suspects.py").write_text(SUSPECT.format(size=size))
    (home / "audit.yaml").write_text(
        "released: {log: log}\nsuspect: {adapter: suspects:answers}\ncontrol: {rhos: []}\n"
    )


def held(process):
    "GB that a running process holds itself, and GB of mapped files."
    found = re.findall(
        r"^Rss(Anon|File):\s+(\d+) kB", Path(f"/proc/{process}/status").read_text(), re.M
    )
    sizes = {name: int(size) * 1024 / 1e9 for name, size in found}
    return sizes.get("Anon", 0), sizes.get("File", 0)


def measured(job, home, every=0.1):
    "Peaks in GB, of its own and of mapped files; seconds; and whether the job came to its end."
    start, peaks = time.perf_counter(), np.zeros(2)
    with open(home / "told.txt", "a") as told:
        child = subprocess.Popen([sys.executable, "-c", job], cwd=home, stdout=told, stderr=told)
        while child.poll() is None:
            peaks = np.maximum(peaks, held(child.pid))
            time.sleep(every)
    return *peaks, time.perf_counter() - start, child.returncode in (0, 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=30_000, help="how many (%(default)s)")
    parser.add_argument("--size", type=int, default=512, help="pixels a side (%(default)s)")
    parser.add_argument("--folder", default=None, help="of a run before; none: a temporary one")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        home = Path(args.folder or made).resolve()
        if not (home / "audit.yaml").exists():
            write(home, args.pictures, args.size)
        alone, *_ = measured("import trainprove_nb.cli, torch, diffusers, datasets", home)
        print(f"{args.pictures:,} pictures of {args.size}²; the libraries alone {alone:.2f} GB\n")
        for name, job in JOBS.items():
            own, files, took, ended = measured(job, home)
            told = "" if ended else "  did not come to its end: see told.txt"
            mapped = f"{files:6.2f} GB of mapped files"
            print(f"{name:<16}{own:6.2f} GB of {MOST} {mapped} {took:8.0f} s{told}", flush=True)


if __name__ == "__main__":
    main()
