"The audits: what they ask for first, and that collected answers are judged like the model itself."

import json

import nbformat
import pandas as pd
import pytest
from helpers import NBS, grid, papermill, refused, results, write_imagefolder
from PIL import Image
from scipy import stats

from trainprove_nb import cli
from trainprove_nb.data.pairs import pixels
from trainprove_nb.lab.classifier_recipes import ClassifierRecipes
from trainprove_nb.lab.classifier_scales import classifier_scale
from trainprove_nb.lab.engine import Lab
from trainprove_nb.lab.generator_recipes import INNOCENTS, GeneratorRecipes
from trainprove_nb.lab.generator_scales import generator_scale
from trainprove_nb.lab.store import Store
from trainprove_nb.suspects.classifiers import FolderClassifier
from trainprove_nb.suspects.generators import PipelineSuspect

# Before work begins

AUDITS = {
    "audit_generator": {
        "shadows": (2, "shadows = 2", "at least 3"),
        "alpha": (1, "alpha = 1", "between"),
        "source": ("mini-v9", "mini-v9", "choose"),
        "knobs": ({"calibration": 3}, "calibration is given twice", "once"),
        "suspect": ("no/such/model", "no folder no/such/model", "give"),
        "base": ("mini-v1", "base = 'mini-v1'", "suspect of yours", "leave base out"),
        "settings": ({"steps": 4}, "settings = ", "suspect of yours", "leave settings out"),
    },
    "audit_classifier": {
        "owner": ("nobody", "'nobody'", "choose"),
        "alpha": (0, "alpha = 0", "between"),
        "suspect": ("none.csv", "no file none.csv", "label"),
        "settings": ({"names": ["a"]}, "settings = ", "suspect of yours", "leave settings out"),
    },
}


@pytest.mark.parametrize(
    "name, parameter, value, says",
    [(n, p, v, says) for n, ps in AUDITS.items() for p, (v, *says) in ps.items()],
)
def test_figure_checks_its_parameters_before_work(tmp_path, name, parameter, value, says):
    refused(
        lambda: grid(
            name,
            **{
                "scale": "smoke",
                "lab": str(tmp_path / "lab"),
                "out": str(tmp_path / "out"),
                parameter: value,
            },
        ),
        *says,
        error=(ValueError, FileNotFoundError),
    )
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_an_auditor_asks_before_training(tmp_path, monkeypatch):
    "Answers that are too few stop the audit before any shadow is made."
    monkeypatch.chdir(tmp_path)
    (tmp_path / "answers.csv").write_text("label\npanda\n")
    names = {}

    def audit():
        for c in nbformat.read(cli.experiments()["audit_classifier"], 4).cells:
            if c.cell_type == "code":
                exec(c.source, names)
            if "parameters" in c.metadata.get("tags", []):
                names.update(scale="smoke", suspect="answers.csv")

    refused(audit, "1 answers", "pictures")
    made = {p.name for p in (tmp_path / "lab").iterdir() if p.is_dir()}
    assert made <= {"labelled", "scratch"}


# Runs, by the installed package


@pytest.mark.parametrize(
    "name, files",
    [
        ("audit_generator", ["audit_generator.png", "audit_generator.csv", "prompts.csv"]),
        ("audit_classifier", ["audit_classifier.png", "pictures/000000.png", "pictures.csv"]),
    ],
)
def test_audit_leaves_its_files(elsewhere, name, files):
    missing = [f for f in (*files, f"{name}.json") if not (results(elsewhere, name) / f).is_file()]
    assert missing == []


def judge(name, *parameters, lab, out):
    "The verdict of an audit at smoke, by this checkout's notebook on a lab that is there."
    settings = {"scale": "smoke", "lab": str(lab), "out": str(out), **dict(parameters)}
    flags = [x for key, value in settings.items() for x in ("-p", key, str(value))]
    out.mkdir()
    papermill(str(NBS / f"audit/{name}.ipynb"), "audit.ipynb", *flags, cwd=out)
    return json.loads((out / f"{name}.json").read_text())["verdict"]


def test_collected_answers_are_audited_like_the_classifier_itself(elsewhere, tmp_path):
    """The pictures that were written out, answered by the lab's own classifier.

    They give the verdict that the notebook gave."""
    recipes = ClassifierRecipes(classifier_scale("smoke"))
    classes, folder = list(recipes.scale.classes), results(elsewhere, "audit_classifier")
    suspect = recipes.suspect("mini-v1", recipes.training_ways()[0])
    net = FolderClassifier(str(Store(elsewhere / "lab").path(suspect)), classes)
    asked = sorted((folder / "pictures").iterdir())
    scores = net(pixels([Image.open(p).convert("RGB") for p in asked]))
    answers = pd.read_csv(folder / "pictures.csv").assign(
        label=[classes[k] for k in scores.argmax(1)]
    )
    answers.sample(frac=1, random_state=0).to_csv(tmp_path / "answers.csv", index=False)
    found = judge(
        "audit_classifier",
        ("suspect", tmp_path / "answers.csv"),
        lab=elsewhere / "lab",
        out=tmp_path / "audit",
    )
    assert found == json.loads((folder / "audit_classifier.json").read_text())["verdict"]


@pytest.fixture(scope="module")
def asked(elsewhere):
    "What the owner of a generator asked a suspect: (recipes, lab, source, prompts, pictures)."
    recipes, lab = GeneratorRecipes(generator_scale("smoke")), Lab(elsewhere / "lab")
    mine = recipes.sources(["mini-v1-avatars"])[0]
    prompts = pd.read_csv(results(elsewhere, "audit_generator") / "prompts.csv")
    infringer = lab.model(recipes.suspect(mine, max(recipes.scale.rhos), 0))
    suspect = PipelineSuspect(infringer, **recipes.sampling)
    return recipes, lab, mine, prompts, suspect(list(prompts.prompt), list(prompts.seed))


def test_collected_pictures_are_audited_like_the_generator_itself(elsewhere, asked, tmp_path):
    """The prompts that were written out, answered by the lab's own infringer.

    They give the verdict that the notebook gave."""
    *_, prompts, pictures = asked
    (tmp_path / "answers").mkdir()
    write_imagefolder(tmp_path / "answers", pictures, prompts.prompt)
    found = judge(
        "audit_generator",
        ("shadows", 3),
        ("suspect", tmp_path / "answers"),
        lab=elsewhere / "lab",
        out=tmp_path / "audit",
    )
    folder = results(elsewhere, "audit_generator")
    assert found == json.loads((folder / "audit_generator.json").read_text())["verdict"]


def test_an_audits_numbers_are_those_of_scipy_and_numpy(elsewhere, asked):
    recipes, lab, mine, _, pictures = asked
    folder = results(elsewhere, "audit_generator")
    found = json.loads((folder / "audit_generator.json").read_text())["verdict"]
    shadows = pd.read_csv(folder / "audit_generator.csv")
    assert list(found["indices"]) == [*INNOCENTS, "another's data"]
    assert found["infringing shadows"] == 3
    for kind, p in found["indices"].items():
        x = shadows.mean_distance[shadows.kind == kind]
        # all but those who know the source's data share a third of their pictures
        far = x.std() * (1 + 1 / 3 + (0 if kind == "same data" else 1)) ** 0.5
        assert len(x) == 3
        assert p == pytest.approx(stats.t.cdf((found["mean_distance"] - x.mean()) / far, 2))
    keys = lab.pictures(recipes.keys(mine, "detection"))
    to_key = ((pictures / 255 - keys / 255) ** 2).mean((1, 2, 3)) ** 0.5
    assert found["conf"] == (to_key <= 0.15).mean()
    assert found["mean_distance"] == pytest.approx(to_key.mean())
    assert found["index"] == max(found["indices"].values())
