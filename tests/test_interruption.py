"A figure run that is killed again and again ends with the files of one that is not; and nothing is ever made twice."

import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import psutil
import pytest
import torch
from helpers import ROOT

SETTINGS = [
    "sources=[mini-v1-avatars]",
    "knobs={source_training: {steps: 8, batch_size: 4, lr: 0.001, save_every: 1}}",
]
MOMENTS = [  # when a run is killed: so many more files of this kind are there; with so many workers
    ("pairs/*/manifest.json", 2, 1),  # early: two sets of pairs
    ("scratch/*/run.pt", 1, 1),  # in the source's training, after a checkpoint
    ("scratch/*.*/unet/*", 1, 1),  # while a model is being written
    ("model/*/manifest.json", 4, 2),
]  # late: several suspects are there, two others are at work

TELL_TIME = [".ipynb", ".html", "run.json"]  # files that say when they were made


def start(lab, out, *settings, jobs=1):
    "A smoke run of Figure 6, as a process."
    command = [
        sys.executable,
        "-m",
        "trainprove_nb.cli",
        "figures",
        "fig6",
        "--scale",
        "smoke",
        "--jobs",
        str(jobs),
        "--lab",
        str(lab),
        "--out",
        str(out),
    ]
    for setting in [*SETTINGS, *settings]:
        command += ["-s", setting]
    with (out.parent / f"{out.name}.log").open("a") as log:
        return subprocess.Popen(command, start_new_session=True, stdout=log, stderr=log)


def finish(process, out):
    assert process.wait(timeout=600) == 0, (out.parent / f"{out.name}.log").read_text()[-2000:]


def drawn(out):
    "The folder of a run's figure, which is called after the settings."
    (folder,) = out.glob("smoke-*/fig6")
    return folder


def artifacts(lab):
    "Folders that bear an artifact's final name."
    return [p for p in lab.glob("*/*") if p.parent.name != "scratch"]


def broken(folder):
    "Whether an artifact is not what its manifest says, to the byte."
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
    except (OSError, ValueError):
        return True
    return digests(folder) != {
        **manifest,
        "manifest.json": hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest(),
    }


def digests(folder, leave_out=()):
    "Each file's digest."
    files = (
        p
        for p in folder.rglob("*")
        if p.is_file() and not {p.relative_to(folder).parts[0], p.name, p.suffix} & set(leave_out)
    )
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files
    }


def stamps(lab):
    "Each artifact file's time of change, and its number on the disk."
    return {
        str(p): (p.stat().st_mtime_ns, p.stat().st_ino)
        for a in artifacts(lab)
        for p in [a, *a.rglob("*")]
    }


def lives(process):
    "Whether a process still runs; one that is dead but not yet fetched by its parent does not."
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def kill_at(process, lab, pattern, n):
    """Kill a run when `n` more files match `pattern`.

    Returns what was half-written under a final name, and which processes outlived it."""
    was, half, began = set(lab.glob(pattern)), [], time.monotonic()
    while len(set(lab.glob(pattern)) - was) < n:
        assert process.poll() is None and time.monotonic() - began < 600, (
            f"the run ended, or stood still, before {n} of {pattern}"
        )
        half += [a for a in artifacts(lab) if not (a / "manifest.json").exists()]
        time.sleep(0.01)
    # Jupyter gives its kernel a session of its own
    family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    half += [a for a in artifacts(lab) if broken(a)]
    ended = time.monotonic()
    while any(map(lives, family)) and time.monotonic() - ended < 20:
        time.sleep(0.1)
    left = [p for p in family if lives(p)]
    told = list(map(str, left))
    for p in left:
        p.kill()
    return half, told


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    "A lab and its figure of one run by one worker; the same by two, after many kills; what was noticed at the kills."
    straight, killed = (tmp_path_factory.mktemp(name) for name in ("straight", "killed"))
    beside, noticed = start(straight / "lab", straight / "out"), []
    try:
        for pattern, n, jobs in MOMENTS:
            noticed.append(
                kill_at(
                    start(killed / "lab", killed / "out", jobs=jobs), killed / "lab", pattern, n
                )
            )
        finish(start(killed / "lab", killed / "out", jobs=2), killed / "out")
        finish(beside, straight / "out")
    finally:
        beside.kill()
    return straight, killed, noticed


def test_nothing_half_written_bears_a_final_name(runs):
    *_, noticed = runs
    assert [half for half, _ in noticed] == [[]] * len(MOMENTS)


def test_no_process_outlives_a_killed_run(runs):
    *_, noticed = runs
    assert [left for _, left in noticed] == [[]] * len(MOMENTS)


def test_killed_runs_end_with_the_same_artifacts(runs):
    straight, killed, _ = runs
    expected = digests(straight / "lab", ["scratch", "times.jsonl"])
    assert {name.split("/")[0] for name in expected} == {
        "pairs",
        "model",
        "prompts",
        "generated",
        "marked",
        "reproduction",
        "keys",
        "answers",
    }
    assert digests(killed / "lab", ["scratch", "times.jsonl"]) == expected


def test_killed_runs_end_with_the_same_figure(runs):
    straight, killed, _ = runs
    expected = digests(drawn(straight / "out"), TELL_TIME)
    figures = ["fig6.png", "fig6.svg", "fig6_calibrated.png", "fig6_calibrated.svg"]
    assert sorted(expected) == sorted([*figures, "fig6.csv", "fig6_models.csv", "fig6.json"])
    assert digests(drawn(killed / "out"), TELL_TIME) == expected
    assert drawn(straight / "out").parent.name == drawn(killed / "out").parent.name


def test_a_figure_says_what_it_was_drawn_with(runs):
    straight, killed, _ = runs
    told = [
        json.loads((drawn(root / "out") / "run.json").read_text()) for root in (straight, killed)
    ]
    assert [t["parameters"]["scale"] for t in told] == ["smoke", "smoke"] and all(
        t["seconds"] > 1 for t in told
    )
    assert (
        told[0]["versions"] == told[1]["versions"]
        and told[0]["versions"]["torch"] == torch.__version__
    )
    head = (
        subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True
        ).stdout.strip()
        if (ROOT / ".git").exists()
        else "None"
    )
    assert str(told[0]["commit"]).startswith(head)
    # no folder of this machine
    assert set(told[0]["parameters"]) == {
        "scale",
        "jobs",
        "sources",
        "knobs",
    }


def test_nothing_of_killed_runs_is_left(runs):
    _, killed, _ = runs
    assert [p.name for p in (killed / "lab" / "scratch").iterdir() if p.suffix != ".lock"] == []


def test_redrawing_with_other_settings_touches_no_artifact(runs, tmp_path):
    straight, *_ = runs
    before = stamps(straight / "lab")
    finish(start(straight / "lab", tmp_path / "out", "delta0=0.35", "N=5"), tmp_path / "out")
    assert stamps(straight / "lab") == before
    table = pd.read_csv(drawn(tmp_path / "out") / "fig6.csv")
    assert set(table.N) == {5} and set(table.delta0.dropna()) == {0.35}
