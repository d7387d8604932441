"Audits without a log, and whom they ask: how suspects are opened, tried, looked at and reported."

import io
import json
import re
import shutil
import threading
import warnings

import numpy as np
import pandas as pd
import pytest
from helpers import png, refused, write_imagefolder
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy import stats

from trainprove_nb.lab.classifier_recipes import ClassifierRecipes
from trainprove_nb.lab.classifier_scales import ClassifierScale, classifier_scale
from trainprove_nb.lab.classifier_trials import validation_order
from trainprove_nb.lab.generator_recipes import GeneratorRecipes
from trainprove_nb.lab.generator_scales import GeneratorScale, generator_scale
from trainprove_nb.lab.generator_trials import build_generator_trials
from trainprove_nb.models.bundled import BUNDLED, WEIGHTS, model_path
from trainprove_nb.provenance.origin_test import OriginTest
from trainprove_nb.report import classifier_audit, generator_audit
from trainprove_nb.report.audits import audit_state, known_models_test, report_state
from trainprove_nb.report.results import shipped_results
from trainprove_nb.suspects.classifiers import check_able, open_classifier
from trainprove_nb.suspects.generators import FolderSuspect
from trainprove_nb.suspects.opening import open_suspect
from trainprove_nb.suspects.own_settings import own_settings
from trainprove_nb.suspects.patience import Pace, as_pace
from trainprove_nb.suspects.services import HTTPSuspect, KeptPictures

pytestmark = pytest.mark.usefixtures("one_thread")
SECRET = "https://suspect.example/draw?key=sk-abc"

# Suspects


@pytest.mark.parametrize("at_once", [1, 3])
def test_no_question_is_begun_after_one_that_failed(at_once):
    begun, lock, together = [], threading.Lock(), threading.Barrier(at_once)

    def work(k):
        with lock:
            begun.append(k)
        together.wait(timeout=5)  # all that are begun at once fail at once
        raise ValueError(f"question {k}")

    refused(lambda: Pace(at_once=at_once).map(work, range(20)), "^question 0$")
    assert sorted(begun) == list(range(at_once))


def test_a_pace_is_written_as_its_numbers():
    pace = as_pace({"per_minute": 30, "at_once": 2})
    assert (pace.per_minute, pace.at_once, pace.budget) == (30, 2, None)
    assert HTTPSuspect("http://x/", pace={"budget": 7}).pace.budget == 7
    assert as_pace(pace) is pace and as_pace(None).at_once == 1
    for wrong in ({"per_second": 1}, 5, {"budget": "many"}, {"at_once": 0}):
        refused(lambda w=wrong: as_pace(w), "give")


def test_kept_pictures_are_read_as_all_others(tmp_path):
    kept = KeptPictures(tmp_path)
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "seen through.png")
    assert np.asarray(kept["seen through"]).min() == 255  # on white, not black
    (tmp_path / "cut.png").write_bytes(png()[:60])
    refused(lambda: kept["cut"], r"cut\.png", "replace")


def test_a_mistyped_path_is_no_name_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models/mine").mkdir(parents=True)
    for wrong in ("models/mine2", "./mine", "../mine2", "~/mine", "a/b/c", "models/a b"):
        refused(lambda w=wrong: model_path(w), "no folder", "owner/model")
    refused(lambda: model_path("models/mine2"), "models has mine")
    refused(lambda: model_path("mine"), "unknown model 'mine'")
    assert model_path("owner/model") == "owner/model"


def test_cards_say_how_the_experiments_draw():
    "Were a card to part from the scales, audits of the bundled models would ask otherwise."
    usual, few = GeneratorScale().sampling, ClassifierScale().steps
    for name in BUNDLED:
        own = own_settings(WEIGHTS / name)
        assert (
            own["steps"] == few.get(name, usual["steps"]) and own["guidance"] == usual["guidance"]
        )
        assert own["where"]["steps"] == own["where"]["guidance"] == "card" and own["size"] == 32


@pytest.mark.parametrize(
    "given, settings, says",
    [
        ("mini-v1", {"scheduler": "LCM"}, ("mini-v1", "scheduler", "steps, guidance")),
        (SECRET, {"steps": 4}, ("no use for steps", "pace")),
        ("openai-images", {"steps": 4}, ("no use for steps", "model, size")),
        ("huggingface", {"model": "a/b", "size": 64}, ("no use for size",)),
    ],
)
def test_settings_that_nobody_heeds_are_refused(given, settings, says, monkeypatch):
    for name in ("OPENAI_API_KEY", "HF_TOKEN"):
        monkeypatch.setenv(name, "sk-abc")
    with pytest.raises(ValueError) as e:
        open_suspect(given, **settings)
    assert "sk-abc" not in str(e.value)
    refused(lambda: open_suspect(given, **settings), *says)


def test_settings_that_a_recipe_heeds_are_taken(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-abc")
    suspect = open_suspect("openai-images", size=64, pace={"budget": 3}, url="http://127.0.0.1/")
    assert suspect.options["width"] == 64 and suspect.pace.budget == 3


def test_a_classifiers_address_is_told_without_its_key():
    with pytest.raises(ValueError) as e:
        open_classifier(SECRET, ["a", "b"], prepare={"size": 8})
    assert "sk-abc" not in str(e.value) and "suspect.example" in str(e.value)


def test_able_enough():
    check_able(50, 100, 0.25, least=0.5)
    refused(lambda: check_able(27, 100, 0.25), "guesses is about 25%")
    refused(lambda: check_able(50, 100, 0.25, least=0.99), "poorest shadow about 99%")


# The plan of an audit of a generator


def asked(**changes):
    usual = dict(scale="smoke", suspect="", base="", settings={}, source=None, shadows=3)
    usual |= dict(strategy="random", alpha=0.05, N=3, delta0=0.15, metric="rms", knobs={})
    return usual | changes


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "A folder for a lab, and for results."
    return tmp_path_factory.mktemp("audit")


@pytest.fixture
def planned(place):
    "Plan an audit of a generator, in silence."

    def plan(**changes):
        with warnings.catch_warnings(action="ignore"):
            return generator_audit.plan_generator_audit(
                asked(**changes), str(place / "lab"), str(place / "out")
            )

    return plan


def test_a_model_is_asked_in_its_own_way_and_at_the_sources_size(planned):
    plan = planned(suspect="mini-lcm")
    told = {k: plan.suspect.settings[k] for k in ("steps", "guidance", "size", "batch_size")}
    assert told == {"steps": 4, "guidance": 2.0, "size": 32, "batch_size": 50}
    how = "4 steps and guidance 2.0 .LCMScheduler., and the shadows with 2 steps and guidance 2.0"
    assert re.search(how, plan.parameters["how"])
    plan = planned(suspect="mini-lcm", settings={"steps": 2, "size": 64}, base="mini-v2")
    assert plan.suspect.settings["steps"] == 2 and plan.suspect.settings["size"] == 64
    assert plan.drawn == 64 and "steps and guidance of the shadows" in plan.parameters["how"]
    assert "said to start from mini-v2, the shadows start from mini-v1" in plan.parameters["how"]


@pytest.fixture
def tuned(tmp_path):
    "A model without a card that is nearly mini-v1."
    folder = shutil.copytree(WEIGHTS / "mini-v1", tmp_path / "theirs")
    (folder / "README.md").unlink()
    file = folder / "unet/diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    first = sorted(weights)[0]
    save_file({**weights, first: weights[first] * 1.01}, file, metadata={"format": "pt"})
    return folder


def test_a_model_that_does_not_tell_is_asked_as_the_shadows(planned, tuned):
    "Not with fifty steps, which nobody tried with it."
    plan = planned(suspect=str(tuned))
    assert (plan.suspect.settings["steps"], plan.suspect.settings["guidance"]) == (2, 2.0)
    assert "guidance of the shadows" in plan.parameters["how"] and plan.parameters["fact"] == ""
    assert re.fullmatch("[0-9a-f]{64}", plan.parameters["weights"])
    plan = planned(suspect=str(tuned), settings={"guidance": 5.0})
    assert plan.suspect.settings["guidance"] == 5.0


def test_a_copy_of_the_source_is_named_at_once(planned, tmp_path):
    "The same bytes under another name; not one byte of another model."
    copy = shutil.copytree(WEIGHTS / "mini-v2", tmp_path / "renamed")
    (copy / "README.md").unlink()
    refused(
        lambda: planned(suspect=str(copy), source="mini-v2"),
        "very weights of the source mini-v2",
        "copy of it",
    )
    with pytest.warns(UserWarning, match="very weights of mini-v2"):
        plan = generator_audit.plan_generator_audit(
            asked(suspect=str(copy)), str(tmp_path / "lab"), str(tmp_path)
        )
    assert plan.parameters["fact"] == "The suspect has the very weights of mini-v2."
    assert "cannot have learnt" in planned(suspect="mini-v1").parameters["fact"]


@pytest.mark.parametrize(
    "wrong, says",
    [
        (dict(settings={"steps": 4}), ("for a suspect of yours", "leave settings out")),
        (dict(base="mini-v1"), ("base = 'mini-v1'", "for a suspect of yours")),
        (dict(suspect="mini-lcm", settings="fast"), ("settings = 'fast'", "names with values")),
        (dict(suspect="mini-lcm", settings={"steps": "4"}), ("settings: steps", "whole number")),
        (dict(suspect="mini-lcm", settings={"size": 0}), ("settings: size", "at least 1")),
        (dict(suspect="mini-lcm", settings={"sampler": "x"}), ("no use for sampler",)),
        (dict(suspect="/nowhere/none"), ("no folder /nowhere/none",)),
    ],
)
def test_bad_requests_are_refused_before_work(planned, place, wrong, says):
    refused(lambda: planned(**wrong), *says)
    assert not list((place / "lab").glob("model/*"))


def test_a_service_is_kept_without_its_key(planned, place):
    plan = planned(suspect=SECRET, settings={"pace": {"budget": 9}, "size": 64})
    assert isinstance(plan.suspect, HTTPSuspect) and plan.suspect.keep == str(place / "out/answers")
    assert "sk-abc" not in json.dumps(plan.parameters) and plan.drawn == 64
    assert "is not known here" in plan.parameters["how"] and plan.suspect.pace.budget == 9


# Asking a generator


@pytest.fixture(scope="module")
def made(place):
    "A lab with a source and its keys, at smoke."
    recipes = GeneratorRecipes(generator_scale("smoke", shadows=3, calibration=3))
    lab = generator_audit.Lab(str(place / "lab"))
    source = recipes.sources(["mini-v1-avatars"])
    for _ in build_generator_trials(lab, recipes, source, [], ["random"], logs=0):
        pass
    return lab


def noise(prompts, seeds, side=32):
    "Another picture to every prompt and seed."
    draws = [np.random.default_rng([s, *p.encode()]) for p, s in zip(prompts, seeds, strict=True)]
    return np.stack([rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for rng in draws])


def test_a_suspect_is_tried_before_anything_is_trained(planned, tmp_path):
    plan, calls = planned(), []

    def deaf(prompts, seeds):
        calls.append(len(prompts))
        return noise(["one"] * len(prompts), [0] * len(seeds))

    plan.suspect, plan.lab = deaf, generator_audit.Lab(str(tmp_path / "lab"))
    refused(lambda: generator_audit.ask_generator(plan), "does not get the prompt")
    assert calls == [4] and not (tmp_path / "lab/model").exists()


@pytest.mark.usefixtures("made")
def test_answers_are_looked_at_and_brought_to_size(planned, place):
    plan = planned()
    plan.suspect = noise
    answers = generator_audit.ask_generator(plan)
    assert len(answers.prompts) == 3 and [x.shape for x in answers.rows] == [(3, 32, 32, 3)] * 3
    table = pd.read_csv(place / "out/prompts.csv")
    assert (answers.rows[2] == noise(list(table.prompt), list(table.seed))).all()

    plan.suspect = lambda prompts, seeds: noise(prompts, seeds, side=64)
    refused(lambda: generator_audit.ask_generator(plan), "asked for 32×32", "gave 64×64")
    plan.parameters["settings"] = {"size": 64}
    assert generator_audit.ask_generator(plan).rows[2].shape == (3, 32, 32, 3)

    def breaks(prompts, seeds):
        return noise(prompts, seeds) if len(prompts) == 4 else 0 * noise(prompts, seeds)

    plan.suspect, plan.parameters["settings"] = breaks, {}
    refused(lambda: generator_audit.ask_generator(plan), "3 of the 3 answers are all black")


@pytest.mark.usefixtures("made")
def test_collected_answers_are_not_tried(planned, place, tmp_path):
    "There is none to a prompt that does not count; and they are judged as those of who drew them."
    plan = planned()
    plan.suspect = noise
    scores = generator_audit.ask_generator(plan).scores
    table = pd.read_csv(place / "out/prompts.csv")
    write_imagefolder(tmp_path, noise(list(table.prompt), list(table.seed)), table.prompt)
    plan = planned(suspect=str(tmp_path))
    assert isinstance(plan.suspect, FolderSuspect) and "not known" in plan.parameters["how"]
    assert generator_audit.ask_generator(plan).scores == scores


# Asking a classifier


@pytest.fixture(scope="module")
def classes():
    "What is known of the pictures at smoke: names, numbers in the order of questions, file names."
    recipes = ClassifierRecipes(classifier_scale("smoke"))
    names, n = list(recipes.scale.classes), recipes.scale.validation_images
    truth = np.repeat(np.arange(len(names)), n)[validation_order(recipes)]
    truth = np.tile(truth, len(recipes.origins))
    return names, truth, [f"{k:06d}.png" for k in range(len(truth))]


@pytest.fixture
def answered(place, tmp_path):
    "What an audit makes of a table of answers: (plan, profile)."

    def audit(table, **settings):
        table.to_csv(tmp_path / "answers.csv", index=False)
        request = dict(scale="smoke", owner=None, alpha=0.05, knobs={}, settings=settings)
        request |= dict(suspect=str(tmp_path / "answers.csv"))
        plan = classifier_audit.plan_classifier_audit(
            request, str(place / "lab"), str(place / "classified")
        )
        return plan, classifier_audit.ask_about_all_origins(plan)

    return audit


def test_a_shuffled_table_is_read_as_one_in_order(answered, classes, place):
    "The answers of one who is always right, by file name in any order; without names in theirs."
    names, truth, files = classes
    table = pd.DataFrame({"file_name": files, "label": [names[k] for k in truth]})
    _, in_order = answered(table)
    _, shuffled = answered(table.sample(frac=1, random_state=0))
    assert (in_order.right == in_order.pictures).all() and shuffled.equals(in_order)
    with pytest.warns(UserWarning, match="in the pictures' order"):
        assert answered(table[["label"]])[1].equals(in_order)
    theirs = table.assign(file_name=[f"mine-{k}.jpg" for k in range(len(files))])
    _, own = answered(theirs.sample(frac=1, random_state=1), files=list(theirs.file_name))
    assert own.equals(in_order)
    assert sorted(p.name for p in (place / "classified/pictures").iterdir()) == files


def test_the_table_that_waits_for_answers_is_not_overwritten(answered, classes, place):
    names, truth, files = classes
    table = pd.DataFrame({"file_name": files, "label": [names[k] for k in truth]})
    waiting = place / "classified/pictures.csv"
    answered(table)
    assert pd.read_csv(waiting).file_name.tolist() == files
    table.to_csv(waiting, index=False)
    answered(table)
    assert pd.read_csv(waiting).equals(table)
    waiting.unlink()


def test_answers_without_sense_are_refused_before_shadows(answered, classes, place):
    names, truth, files = classes
    turned = pd.DataFrame({"file_name": files, "label": [names[(k + 1) % 3] for k in truth]})
    refused(lambda: answered(turned), "its 'frog' is our 'cat face'", "mapping")
    theirs = {names[(k + 1) % 3]: names[k] for k in range(3)}
    _, profile = answered(turned, mapping=theirs)
    assert (profile.right == profile.pictures).all()
    guessed = np.random.default_rng(1).permutation(truth)
    guessed = pd.DataFrame({"file_name": files, "label": [names[k] for k in guessed]})
    refused(lambda: answered(guessed), "guesses")
    assert not (place / "lab/classifier").exists()


def profiles(shares, n=400):
    "A table in which the suspect, and four shadows of each origin, are right about these shares."
    origins, rows = ("mine", "rival", "real"), []
    for who, k, origin, share in shares:
        right = {o: np.arange(n) < round(n * (share + 0.06 * (o == origin))) for o in origins}
        rows.append(classifier_audit.profile_rows(right, "" if who == "suspect" else origin, k))
    return pd.concat(rows, ignore_index=True)


def shadow_shares():
    shares = [0.52, 0.6, 0.68, 0.77, 0.84]
    wobble = np.random.default_rng(0).uniform(-0.02, 0.02, (3, 5))
    return [
        ("shadow", k, origin, share + wobble[j, k])
        for j, origin in enumerate(("mine", "rival", "real"))
        for k, share in enumerate(shares)
    ]


def test_a_suspect_far_below_all_shadows_is_not_judged(answered, classes):
    names, truth, files = classes
    plan, _ = answered(pd.DataFrame({"file_name": files, "label": [names[k] for k in truth]}))
    fine = profiles([("suspect", 0, "mine", 0.5), *shadow_shares()])
    poor = profiles([("suspect", 0, "mine", 0.38), *shadow_shares()])
    classifier_audit._check_beside_shadows(plan, fine)
    refused(lambda: classifier_audit._check_beside_shadows(plan, poor), "poorest shadow")
    plan.suspect = None
    classifier_audit._check_beside_shadows(plan, poor)  # one of the lab is what it is


def test_settings_of_no_suspect(place):
    request = dict(scale="smoke", owner=None, alpha=0.05, knobs={}, suspect="")
    for settings, says in (({"names": ["a"]}, "for a suspect of yours"), (["a"], "names with")):
        refused(
            lambda s=settings: classifier_audit.plan_classifier_audit(
                request | {"settings": s}, str(place / "lab"), str(place / "classified")
            ),
            says,
        )


def test_left_out_shadows_are_judged_as_strangers():
    "A test built anew without the shadow, its unit changed for the whole test's, gives the same."
    table = profiles([("suspect", 0, "mine", 0.7), *shadow_shares()])
    found = classifier_audit.left_out_pvalues(table, "mine", 0.1)
    assert found.index.tolist() == ["mine"] * 5 + ["rival"] * 5 + ["real"] * 5
    answers = {}
    for (origin, _), rows in table[table.who == "shadow"].groupby(["origin", "k"], sort=False):
        right = {r.validation: np.arange(r.pictures) < r.right for r in rows.itertuples()}
        answers.setdefault(origin, []).append(right)
    whole = OriginTest(answers, 0.1)
    for k in range(5):
        rest = {**answers, "mine": answers["mine"][:k] + answers["mine"][k + 1 :]}
        anew = OriginTest(rest, 0.1)
        freedom = anew.fitted.freedom
        t = stats.t.isf(anew.judge(answers["mine"][k], "mine").p, freedom) * anew.scale("mine")
        assert found.iloc[k] == pytest.approx(stats.t.sf(t / whole.scale("mine"), freedom))


# Reports


@pytest.mark.parametrize(
    "rejected, caught, of, state",
    [
        (True, 3, 5, "lead"),
        (True, 1, 2, "lead"),
        (False, 3, 5, "no evidence"),
        (True, 2, 5, "cannot decide"),
        (False, 0, 5, "cannot decide"),
        (True, 0, 0, "cannot decide"),
    ],
)
def test_no_evidence_without_power(rejected, caught, of, state):
    assert audit_state(rejected, caught, of) == state


def test_known_models_pass_where_they_should():
    assert known_models_test(3, 5, True, 0.05)["passed"] is True
    assert known_models_test(2, 5, True, 0.05)["passed"] is False
    assert known_models_test(1, 20, False, 0.05)["passed"] is True
    assert known_models_test(8, 20, False, 0.05)["passed"] is False


def generator_parts(place):
    redraw = str(shipped_results("audit_generator"))
    plan = generator_audit.plan_generator_audit({}, "", str(place / "shipped"), redraw)
    answers, table = generator_audit.ask_generator(plan), generator_audit.measure_shadows(plan)
    verdict = generator_audit.judge_generator(answers.scores, table)
    return verdict, generator_audit.generator_report(plan, answers, table, verdict)


def classifier_parts(place):
    redraw = str(shipped_results("audit_classifier"))
    plan = classifier_audit.plan_classifier_audit({}, "", str(place / "shipped"), redraw)
    profile = classifier_audit.ask_about_all_origins(plan)
    table = classifier_audit.measure_profiles(plan, profile)
    verdict = classifier_audit.judge_classifier(table, plan.parameters["owner"], plan.chance)
    return verdict, classifier_audit.classifier_report(plan, table, verdict)


@pytest.mark.parametrize("parts", [generator_parts, classifier_parts])
def test_a_report_says_what_was_found_and_no_more(place, parts):
    verdict, report = parts(place)
    assert " ".join(report) == "verdict asked tests controls pairs power cannot_tell repeat"
    said = report["verdict"]
    assert not re.search("guilt|innocen", said["sentence"], re.I)
    of = getattr(verdict, "infringing", getattr(verdict, "own", None))
    assert f"{of} " in said["sentence"] and f" {verdict.caught}" in said["sentence"]
    assert said["state"] == report_state(audit_state(verdict.rejected, verdict.caught, of))
    assert {test["guarantee"] for test in report["tests"]} == {"lead"}
    Image.open(io.BytesIO(report["tests"][0]["picture"])).verify()
    assert sum(row["found"] for row in report["power"]) == verdict.caught
    assert sum(row["of"] for row in report["power"]) == of
    assert "papermill" in report["repeat"]["command"] and "date" in [
        x["name"] for x in report["asked"]
    ]


@pytest.mark.parametrize("parts", [generator_parts, classifier_parts])
def test_a_report_has_the_form_that_is_read(place, parts):
    audit = pytest.importorskip("trainprove_nb.audit.report")
    _, report = parts(place)
    found = audit.AuditReport(**report)
    assert found.verdict.state == report["verdict"]["state"]


@pytest.mark.usefixtures("made")
def test_pairs_of_a_report(planned):
    "The nearest first; and the pictures are those that were compared."
    plan = planned()
    plan.suspect = noise
    answers = generator_audit.ask_generator(plan)
    pairs = generator_audit._pairs(plan, answers)
    near = [float(re.search(r"picture: ([\d.]+)", pair["note"])[1]) for pair in pairs]
    assert len(pairs) == 3 and near == sorted(near)
    k = answers.prompts.index(pairs[0]["prompt"])
    for name, row in (("released", 1), ("suspect", 2)):
        drawn = np.asarray(Image.open(io.BytesIO(pairs[0][name])))
        assert (drawn == answers.rows[row][k]).all()
