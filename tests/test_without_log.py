"An audit without a log looks at the owner's model and pictures, and what would not count is refused."

import pytest
from click.testing import CliRunner
from helpers import pictures, write_imagefolder

from trainprove_nb.audit import command
from trainprove_nb.audit.checks import check_file
from trainprove_nb.audit.outlook import outlook
from trainprove_nb.audit.reading import read_audit
from trainprove_nb.cli import main
from trainprove_nb.lab.classifier_scales import classifier_scale
from trainprove_nb.report.generator_audit import _whose, plan_generator_audit

SMOKE = "lab: {scale: smoke, shadows: 3}\n"
OWNED = "owned: {model: mini-v2, trained_on: mine}\n"


@pytest.fixture
def case(tmp_path):
    "A folder with the owner's pictures."
    (tmp_path / "mine").mkdir()
    write_imagefolder(tmp_path / "mine", pictures(30, 32), [f"picture {k}" for k in range(30)])
    return tmp_path


def written(case, text):
    (case / "audit.yaml").write_text(text)
    return case / "audit.yaml"


@pytest.fixture
def ran(monkeypatch):
    "What the command would run: notebook and parameters."
    found = []

    def note(notebook, parameters, out):
        found.append((notebook.stem, parameters))
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "run_notebook", note)
    return found


def asked_of(file, ran):
    CliRunner().invoke(main, ["audit", "run", str(file)])
    ((_, parameters),) = ran
    return parameters


USUAL = dict(strategy="detection", N=None, delta0=0.15, metric="rms")


def test_the_source_is_the_owner_s_model_and_its_pictures(case, ran):
    file = written(case, OWNED + SMOKE + "suspect: {model: mini-lcm}\n")
    assert check_file(read_audit(file)) == []
    parameters = asked_of(file, ran)
    lab = parameters.pop("lab")
    parameters.pop("jobs")
    plan = plan_generator_audit({**USUAL, **parameters}, lab, str(case / "out"))
    source, train = plan.recipes.source(plan.source), plan.recipes.train(plan.source)
    assert source == plan.recipes.base("mini-v2")
    assert train["corpus"] == str(case / "mine") and train["split"] == "all"
    assert plan.recipes.scale.shadows == 3 and plan.parameters["alpha"] == 0.05
    found = plan.lab.pairs(train)
    assert set(found["text"]) <= {f"picture {k}" for k in range(30)}
    assert len(found) == plan.recipes.scale.train


def test_the_outlook_says_what_shadows_learn(case):
    told = " ".join(outlook(read_audit(written(case, OWNED + "suspect: {model: mini-lcm}\n"))))
    assert "start from mini-v1" in told and "pictures of avatars and emoji" in told


def test_the_owner_of_classifiers_is_named(case, ran):
    suspect = "suspect: {kind: classifier, model: answers.csv}\nlab: {scale: smoke}\n"
    (case / "answers.csv").write_text("file_name,label\na.png,cat\n")
    file = written(case, "owned: {model: mini-v2}\n" + suspect)
    assert check_file(read_audit(file)) == []
    assert asked_of(file, ran)["owner"] == "mini-v2"
    assert "mini-v2" in classifier_scale("smoke").generators


@pytest.mark.parametrize(
    "text, says",
    [
        (
            OWNED
            + "suspect: {model: mini-lcm}\nlab: {knobs: {trained: {mini-v1-avatars: [a, b]}}}\n",
            "lab.knobs = a mapping: trained is told by owned.model",
        ),
        (
            OWNED + "suspect: {adapter: os.path:join}\n",
            "suspect.adapter = 'os.path:join': without a log",
        ),
        (
            "owned: {model: mini-v2, trained_on: mine, settings: {steps: 4}}\n"
            "suspect: {model: mini-lcm}\n",
            "owned.settings = a mapping: this does not count without a log",
        ),
        (
            OWNED + "suspect: {model: mini-lcm, access: prompts}\n",
            "suspect.access = 'prompts': this does not count without a log",
        ),
        (
            OWNED + "suspect: {model: mini-lcm}\ntest: {questions: 5}\n",
            "test.questions = 5: this does not count without a log",
        ),
        (
            "owned: {model: mini-lcm}\nsuspect: {kind: classifier, model: answers.csv}\n"
            "lab: {scale: smoke}\n",
            "owned.model = 'mini-lcm': it is none of the generators that are compared",
        ),
    ],
)
def test_what_would_not_count_is_refused(case, text, says):
    (case / "answers.csv").write_text("file_name,label\na.png,cat\n")
    told = check_file(read_audit(written(case, text)))
    assert any(says in sentence for sentence in told), told


def test_a_verdict_calls_the_owner_s_model_by_its_name():
    trained = {"mini-v1-avatars": ["models/mine", "data"]}
    assert _whose({"source": "mini-v1-avatars", "knobs": {"trained": trained}}) == "mine"
    assert _whose({"source": "mini-v1-avatars", "knobs": {}}) == "mini-v1-avatars"
