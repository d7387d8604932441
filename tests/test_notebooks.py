"Every notebook runs: those of the package as nbdev runs them, and the trainings of the shipped models, shortened."

import ast
import multiprocessing
import os
import re

import pytest
from helpers import ROOT, cells, papermill
from PIL import Image

from trainprove_nb.models.mini import MINI_RECIPES
from trainprove_nb.models.pipelines import load_model


def skipped(path):
    return any(c.cell_type == "raw" and "skip_exec: true" in c.source for c in cells(path))


def documented(path):
    "The parameters of a notebook, from its cell: name -> (type, comment)."
    (source,) = (c.source for c in cells(path) if "parameters" in c.metadata.get("tags", []))
    comments = dict(re.findall(r"^(\w+).*# (.+)$", source, re.M))
    return {
        node.target.id: (node.annotation.id, comments.get(node.target.id))
        for node in ast.parse(source).body
    }


def files(folder):
    "Each file's time of change, caches left out."
    return {
        p: p.stat().st_mtime_ns
        for p in folder.rglob("*")
        if p.is_file() and not {"__pycache__", ".ipynb_checkpoints"} & set(p.parts)
    }


MODULES = [
    p.relative_to(ROOT).as_posix()
    for p in sorted((ROOT / "nbs").rglob("*.ipynb"))
    if any(c.source.startswith("#| default_exp") for c in cells(p))
]
MODULES.append("nbs/evidence/breaches.ipynb")  # shows what others export


@pytest.fixture(scope="module")
def processes():
    "Where new processes come from: one that has done the long imports, which they need not do again."
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "trainprove_nb.lab.engine",
            "trainprove_nb.models.pipelines",
            "trainprove_nb.attribution.watermark",
            "nbdev.test",
            "matplotlib.pyplot",
            "seaborn",
        ]
    )
    return context


def run(root, path, log):
    "Run a notebook as nbdev does; what it prints goes to a file."
    os.chdir(root)
    with open(log, "w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    from nbdev.test import nbdev_test

    nbdev_test.__wrapped__(path, n_workers=0)


@pytest.mark.parametrize("path", [p for p in MODULES if not skipped(p)])
def test_notebook_runs_and_leaves_nothing(checkout, processes, tmp_path, path):
    before = files(checkout)
    process = processes.Process(target=run, args=(checkout, path, tmp_path / "log"))
    process.start()
    process.join()
    log = (tmp_path / "log").read_text()
    assert process.exitcode == 0 and "Success." in log, log[-3000:]
    assert files(checkout) == before


@pytest.mark.parametrize(
    "path",
    [
        p.relative_to(ROOT).as_posix()
        for p in sorted((ROOT / "nbs").rglob("*.ipynb"))
        if any("parameters" in c.metadata.get("tags", []) for c in cells(p))
    ],
)
def test_help_names_each_parameter_with_its_type(path):
    shown, params = papermill("--help-notebook", path, cwd=ROOT), documented(path)
    assert len(params) >= 5
    long = [name for name, (_, comment) in params.items() if comment is None]
    assert long == [], "a parameter is one line of at most 100 characters, or its help is lost"
    for name, (kind, comment) in params.items():
        assert re.search(
            rf"^  {name}: {kind} \(default .*\)\s+{re.escape(comment)}$", shown, re.M
        ), name


@pytest.mark.parametrize("name", MINI_RECIPES)
def test_bases_are_trained(name, tmp_path):
    papermill(
        str(ROOT / "nbs/models/bases.ipynb"),
        "bases.ipynb",
        "-p",
        "name",
        name,
        "-p",
        "steps",
        "2",
        "-p",
        "pretrain",
        "40",
        "-p",
        "precision",
        "no",
        "-p",
        "out",
        "base",
        cwd=tmp_path,
    )
    pipe = load_model(str(tmp_path / "base"))
    assert pipe.scheduler.config.prediction_type == MINI_RECIPES[name]["prediction"]
    assert pipe.unet.config.block_out_channels == list(MINI_RECIPES[name]["channels"])
    with Image.open(tmp_path / "base/samples.png") as sheet:
        assert sheet.size == (12 * 66 - 2, 3 * 66 - 2)  # 36 pictures, magnified by 2


def test_a_few_step_model_is_distilled(tmp_path):
    papermill(
        str(ROOT / "nbs/models/lcm.ipynb"),
        "lcm.ipynb",
        "-p",
        "steps",
        "3",
        "-p",
        "pretrain",
        "20",
        "-p",
        "precision",
        "no",
        "-p",
        "out",
        "lcm",
        cwd=tmp_path,
    )
    pipe = load_model(str(tmp_path / "lcm"))
    assert (
        type(pipe).__name__ == "LatentConsistencyModelPipeline"
        and pipe.unet.config.time_cond_proj_dim == 64
    )
    assert not pipe.unet.time_embedding.cond_proj.weight.eq(
        0
    ).all()  # the student has begun to heed the guidance


def test_a_transformer_is_trained(tmp_path):
    papermill(
        str(ROOT / "nbs/models/dit.ipynb"),
        "dit.ipynb",
        "-p",
        "steps",
        "2",
        "-p",
        "pretrain",
        "20",
        "-p",
        "precision",
        "no",
        "-p",
        "out",
        "dit",
        cwd=tmp_path,
    )
    assert type(load_model(str(tmp_path / "dit"))).__name__ == "PixArtAlphaPipeline"
