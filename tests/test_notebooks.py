"Every notebook runs: those of the package as nbdev runs them, and the trainings of the shipped models, shortened."

import ast
import re

import pytest
from click.testing import CliRunner
from helpers import ROOT, cells, forked, played, run_as_nbdev
from papermill.cli import papermill
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
# They show what others export
SHOWING = ("evidence/breaches", "tour", "which_test", "readings", "faq", "stable_diffusion")
SHOWING += ("audit/reports", "audit/with_a_log", "audit/without_a_log", "extending", "api")
MODULES += [f"nbs/{name}.ipynb" for name in SHOWING]


def works_long(path):
    "Whether a notebook trains models, or makes what a lab makes."
    source = "\n".join(c.source for c in cells(path) if c.cell_type == "code")
    return re.search(r"\b(finetune|Lab|train_classifier|measure\w*|generate)\(", source) is not None


MODULES.sort(key=works_long, reverse=True)  # so that no worker ends with a long one


# They show how things are made, or count what was
ALONE = [
    f"nbs/{name}.ipynb" for name in ("lab/store", "lab/engine", "lab/costs", "report/estimates")
]


@pytest.mark.parametrize("path", [p for p in MODULES if not skipped(p)])
def test_notebook_runs_and_leaves_nothing(checkout, made_before, tmp_path, path):
    before, made = files(checkout), None if path in ALONE else made_before
    log = forked(tmp_path / "log", run_as_nbdev, checkout, path, made)
    assert "Success." in log, log[-3000:]
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
    shown = CliRunner().invoke(papermill, ["--help-notebook", str(ROOT / path)]).output
    params = documented(path)
    assert len(params) >= 5
    long = [name for name, (_, comment) in params.items() if comment is None]
    assert long == [], "a parameter is one line of at most 100 characters, or its help is lost"
    for name, (kind, comment) in params.items():
        assert re.search(
            rf"^  {name}: {kind} \(default .*\)\s+{re.escape(comment)}$", shown, re.M
        ), name


@pytest.mark.parametrize("name", MINI_RECIPES)
def test_bases_are_trained(name, tmp_path):
    settings = {"name": name, "steps": 2, "pretrain": 20, "precision": "no", "out": "base"}
    played(ROOT / "nbs/models/bases.ipynb", tmp_path, **settings)
    pipe = load_model(str(tmp_path / "base"))
    assert pipe.scheduler.config.prediction_type == MINI_RECIPES[name]["prediction"]
    assert pipe.unet.config.block_out_channels == list(MINI_RECIPES[name]["channels"])
    with Image.open(tmp_path / "base/samples.png") as sheet:
        assert sheet.size == (12 * 66 - 2, 3 * 66 - 2)  # 36 pictures, magnified by 2


def test_a_few_step_model_is_distilled(tmp_path):
    settings = {"steps": 3, "pretrain": 20, "precision": "no", "out": "lcm"}
    played(ROOT / "nbs/models/lcm.ipynb", tmp_path, **settings)
    pipe = load_model(str(tmp_path / "lcm"))
    assert (
        type(pipe).__name__ == "LatentConsistencyModelPipeline"
        and pipe.unet.config.time_cond_proj_dim == 64
    )
    assert not pipe.unet.time_embedding.cond_proj.weight.eq(
        0
    ).all()  # the student has begun to heed the guidance


def test_a_transformer_is_trained(tmp_path):
    settings = {"steps": 2, "pretrain": 20, "precision": "no", "out": "dit"}
    played(ROOT / "nbs/models/dit.ipynb", tmp_path, **settings)
    assert type(load_model(str(tmp_path / "dit"))).__name__ == "PixArtAlphaPipeline"
