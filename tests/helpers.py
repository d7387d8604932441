"What several of the test files say or make: refusals, pictures, folders, notebooks that run."

import ast
import io
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
from base64 import b64decode
from functools import lru_cache
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml
from datasets import Dataset
from PIL import Image

from trainprove_nb import cli

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / "nbs"
NOTEBOOKS = sorted(
    p.relative_to(ROOT)
    for p in NBS.rglob("*.ipynb")
    if not re.search(r"/[._]", p.relative_to(ROOT).as_posix())
)
ANIMALS = ["cat face", "frog", "panda"]


def sentence(text, *says):
    "Check that a message is one readable line in which each of `says` (regular expressions) is found."
    assert not re.search(r"\n|Traceback| object at 0x", text) and len(text) < 600, text
    assert [s for s in says if not re.search(s, text)] == [], text


def refused(call, *says, error=ValueError):
    "Check that a call is refused, in one sentence in which each of `says` is found."
    with pytest.raises(error) as e:
        call()
    sentence(str(e.value), *says)


def says_exactly(call, message):
    "Check that a call is refused with this message."
    refused(call, f"^{re.escape(message)}$")


def image(side=8):
    "A noise picture."
    return Image.fromarray(
        np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)
    )


def png():
    "A PNG file's bytes."
    out = io.BytesIO()
    image().save(out, "png")
    return out.getvalue()


def folder_of(path, rows, files):
    "An imagefolder with these lines of metadata and these files."
    for name, content in files.items():
        (path / name).write_bytes(content)
    (path / "metadata.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


GOOD = {"file_name": "a.png", "text": "a"}


full = pytest.mark.skipif(
    not Path("/dev/full").exists(), reason="needs /dev/full, a file that is always full"
)


def grid(name="fig6", **parameters):
    "Run an experiment's notebook up to where its work begins, here and with other parameters."
    cells = [c for c in nbformat.read(cli.experiments()[name], 4).cells if c.cell_type == "code"]
    names = {}
    for c in cells:
        for statement in ast.parse(c.source).body:
            if re.search(r"\b(made|build)\(", ast.unparse(statement)):
                return names
            exec(ast.unparse(statement), names)
        if "parameters" in c.metadata.get("tags", []):
            assert set(parameters) <= set(names)
            names.update(parameters)
    raise AssertionError("the notebook builds nothing")


def pictures(n, side=8, seed=0):
    "Noise pictures, uint8 (n, side, side, 3)."
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def write_imagefolder(folder, images, texts):
    "Pictures as PNG files, their captions in metadata.jsonl."
    with open(folder / "metadata.jsonl", "w") as f:
        for k, (image, text) in enumerate(zip(images, texts, strict=True)):
            Image.fromarray(image).save(folder / f"{k}.png")
            f.write(json.dumps({"file_name": f"{k}.png", "text": text}) + "\n")


def numbered(word, n):
    "A dataset of texts: `word 0`, `word 1`, ..."
    return Dataset.from_dict({"text": [f"{word} {k}" for k in range(n)]})


def run(*args, cwd=ROOT, **env):
    "Run Python with `args` and some environment; returns the finished process, its output as text."
    return subprocess.run(
        [sys.executable, *args],
        cwd=cwd,
        env={**os.environ, **env},
        text=True,
        capture_output=True,
    )


@lru_cache(None)
def cells(path):
    "Cells of a notebook, by its path in the repository; not to be changed, for they are read once."
    return nbformat.read(ROOT / path, 4).cells


def contents(section=None):
    "All notebooks of the sidebar, or of one section, in their order, as paths in nbs/."
    sidebar = yaml.safe_load((ROOT / "nbs" / "sidebar.yml").read_text())["website"]["sidebar"]
    parts = [e if isinstance(e, dict) else {"contents": [e]} for e in sidebar["contents"]]
    chosen = [p for p in parts if section in (None, p.get("section", "").partition(":")[0])]
    return [path for part in chosen for path in part["contents"]]


DRAWN = re.compile(r'data:image/png;base64,([^"\s]+)')  # a picture within a page


def pictures_of(output):
    "PNG files that one output of a cell shows, as bytes; as such, or within HTML."
    data = output.get("data", {})
    found = [data["image/png"]] if "image/png" in data else []
    return [b64decode(x) for x in found + DRAWN.findall("".join(data.get("text/html", "")))]


def papermill(*args, cwd):
    "Run papermill's command; returns what it printed."
    done = run("-m", "papermill", *args, cwd=cwd)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


PRELOADED = [
    "trainprove_nb.lab.makers",
    "trainprove_nb.attribution.watermark",
    "nbdev.test",
    "papermill.iorw",
    "papermill.parameterize",
    "matplotlib.pyplot",
    "seaborn",
]


@lru_cache(None)
def processes():
    "Where new processes come from: one that has done the long imports, which they need not do again."
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def logged(log, work, args):
    "Do some work; what it prints goes to a file."
    with open(log, "w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    try:
        work(*args)
    finally:
        end_workers()


def end_workers():
    "End joblib's workers: they wait 300 seconds for more, and a process that was forked waits for them."
    loky = sys.modules.get("joblib.externals.loky.reusable_executor")
    if loky and loky._executor:
        loky._executor.shutdown(kill_workers=True)


def forked(log, work, *args):
    "Do some work in a process that need not import anew; returns what it printed, to the file `log`."
    process = processes().Process(target=logged, args=(log, work, args))
    process.start()
    process.join()
    text = Path(log).read_text()
    assert process.exitcode == 0, text[-3000:]
    return text


def share_artifacts(folder):
    "Let every lab of this process take what another made of the same recipe from a folder, or leave it there."
    from trainprove_nb.lab.store import Store

    common, write = Store(folder), Store._write
    of_the_lab = shutil.ignore_patterns("recipe.json", "manifest.json")

    def written(store, recipe, path, make, scratch):
        def taken(into, _):
            shutil.copytree(common.get(recipe, make), into, dirs_exist_ok=True, ignore=of_the_lab)

        write(store, recipe, path, make if store.root == common.root else taken, scratch)

    Store._write = written


def run_as_nbdev(root, path, made=None):
    "Run a notebook as nbdev does; here, since what a new process works on it imports first."
    os.chdir(root)
    if made:
        share_artifacts(made)
    from nbdev.test import nbdev_test

    nbdev_test.__wrapped__(path, n_workers=0)


def play(path, cwd, parameters, made=None):
    "Run a notebook's cells in this process, its parameters set as papermill sets them, and leave it in the folder."
    from execnb.shell import CaptureShell
    from papermill.iorw import load_notebook_node
    from papermill.parameterize import parameterize_notebook

    os.chdir(cwd)
    if made:
        share_artifacts(made)
    pd.set_option("display.width", 80, "display.max_columns", 20)  # as pandas does in Jupyter
    shell = CaptureShell(cwd)
    kernel = {"kernel_name": "python3", "language": "python"}
    notebook = parameterize_notebook(load_notebook_node(path), parameters, **kernel)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            found = shell.run(cell.source)
            if shell.exc:
                raise shell.exc
            cell.outputs = [nbformat.from_dict(output) for output in found]
    nbformat.write(notebook, Path(cwd) / Path(path).name)


def played(path, cwd, made=None, **parameters):
    "Run a notebook with some parameters in a folder, without papermill's wait for a new kernel."
    forked(Path(cwd) / f"{Path(path).stem}.log", play, str(path), str(cwd), parameters, made)


GUARD = """
import sys
from pathlib import Path
sys.meta_path = [f for f in sys.meta_path if "editable" not in getattr(f, "__module__", "")]
sys.path = [p for p in sys.path if Path(p).resolve() != Path({root!r})]
"""


class Installed:
    "The package from its wheel, in a folder of its own: `run` runs it where nothing of the checkout can be imported."

    def __init__(self, source, folder):
        self.folder, self.guard = folder / "site", folder / "guard"
        made, offline = folder / "wheel", ["--no-deps", "--disable-pip-version-check", "-q"]
        self._pip("wheel", str(source), "-w", str(made), "--no-build-isolation", *offline)
        (self.wheel,) = made.glob("*.whl")
        self._pip("install", str(self.wheel), "--target", str(self.folder), *offline)
        self.guard.mkdir()
        (self.guard / "sitecustomize.py").write_text(GUARD.format(root=str(ROOT)))

    def _pip(self, *args):
        done = run("-m", "pip", *args)
        assert done.returncode == 0, done.stdout + done.stderr

    def run(self, *args, cwd, there=True):
        "Run Python where the package is the installed one; or, unless `there`, where it is not at all."
        places = [self.guard, self.folder] if there else [self.guard]
        return run(*args, cwd=cwd, PYTHONPATH=os.pathsep.join(map(str, places)))

    def trainprove(self, *args, cwd):
        "Run the command; returns what it printed."
        done = self.run(str(self.folder / "bin/trainprove"), *args, cwd=cwd)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout


def results(folder, name):
    "The folder below `folder` in which the command left an experiment's results."
    (found,) = folder.glob(f"figures/*/{name}")
    return found
