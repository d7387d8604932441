"What several of the test files share: the checkout's notebooks, papermill, and a copy to run in."

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault(
        "OMP_NUM_THREADS", "1"
    )  # workers share the cores; said before torch is imported
ROOT = Path(__file__).resolve().parent.parent


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in the same hook
def pytest_collection_modifyitems(items):
    "Tests of one file share a worker, and so its fixtures; notebooks, which take longest, go wherever one is free."
    for item in items:
        if item.path.name != "test_notebooks.py":
            item.add_marker(pytest.mark.xdist_group(item.path.name))


def cells(path):
    return nbformat.read(ROOT / path, 4).cells


def papermill(*args, cwd):
    "Run papermill's command; returns what it printed."
    done = subprocess.run(
        [sys.executable, "-m", "papermill", *args], cwd=cwd, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    "A copy of what the notebooks need, to run them in."
    root = tmp_path_factory.mktemp("checkout")
    skip = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    for name in ("nbs", "trainprove_nb"):
        shutil.copytree(ROOT / name, root / name, symlinks=True, ignore=skip)
    for name in ("settings.ini", "_quarto.yml"):
        shutil.copy2(ROOT / name, root)
    return root
