"Calibration by models of the owner's own: the numbers, the level, what is refused, and audits that use it."

import json

import numpy as np
import pytest
import scipy.stats
from helpers import refused
from sklearn.linear_model import LinearRegression
from sklearn.preprocessing import OneHotEncoder
from test_audit_ways import (  # noqa: F401
    CLASSES,
    audit_file,
    audited,
    classifier,
    generators,
    log,
    released,
    service,
)

from trainprove_nb.audit import log_audit
from trainprove_nb.audit.checks import check_file
from trainprove_nb.audit.outlook import expected_power, outlook, stages
from trainprove_nb.audit.reading import read_audit
from trainprove_nb.audit.scores import Asked
from trainprove_nb.evidence.calibration import calibrated, check_innocent
from trainprove_nb.evidence.log_test import log_test
from trainprove_nb.lab.generator_recipes import GeneratorRecipes
from trainprove_nb.lab.generator_scales import generator_scale
from trainprove_nb.lab.log_recipes import own_model, withheld
from trainprove_nb.lab.log_trials import LogPlan, log_stages, log_trials
from trainprove_nb.lab.store import recipe_name
from trainprove_nb.models import classifiers as networks
from trainprove_nb.report.results import read_results, shipped_results

PROMPTS = np.repeat(np.arange(60), 3)
LABELS = np.tile([True, False, False], 60)


def drawn(seed, models=2):
    "Scores of a suspect and of references that share something, prompt by prompt."
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=180) + rng.normal(size=60)[PROMPTS]
    references = shared + 0.5 * rng.normal(size=(models, 180))
    return shared + 0.5 * rng.normal(size=180), references


@pytest.mark.parametrize("models", [1, 2, 5])
def test_it_is_the_residual_of_a_regression_with_a_constant_for_each_prompt(models):
    score, references = drawn(0, models)
    prompts = OneHotEncoder(sparse_output=False).fit_transform(PROMPTS[:, None])
    known = np.hstack([references.T, prompts])
    told = LinearRegression(fit_intercept=False).fit(known, score).predict(known)
    np.testing.assert_allclose(calibrated(score, references, PROMPTS), score - told, atol=1e-9)


def test_by_hand():
    "Deviations (0, -1, 1) and (-1, -1, 2)/3: the share is 3/2, and (1, -1, 0)/2 is left."
    left = calibrated([3.0, 2.0, 4.0], [1.0, 1.0, 2.0], ["a"] * 3)
    np.testing.assert_allclose(left, [0.5, -0.5, 0], atol=1e-12)


def test_units_and_constants_of_references_do_not_count():
    score, references = drawn(1)
    left = calibrated(score, references, PROMPTS)
    changed = references * [[100], [-0.01]] + np.arange(60)[PROMPTS]
    np.testing.assert_allclose(calibrated(score, changed, PROMPTS), left, atol=1e-9)
    constant = np.vstack([references, np.ones(180)])
    np.testing.assert_allclose(calibrated(score, constant, PROMPTS), left, atol=1e-9)


def test_what_is_shared_no_longer_hides_what_was_learnt():
    "Alone a lead of .4 is lost in the noise; beside references it is not."
    alone, beside = [], []
    for seed in range(40):
        score, references = drawn(seed)
        score = score + 0.4 * LABELS
        alone.append(log_test(score, LABELS, PROMPTS, 199).z)
        beside.append(log_test(calibrated(score, references, PROMPTS), LABELS, PROMPTS, 199).z)
    assert np.mean(beside) > 1.3 * np.mean(alone)


def found(change=lambda references: references, lead=0.0, runs=300):
    "How many suspects have p at most .05, of which released pictures are known better by so much."
    count = 0
    for seed in range(runs):
        score, references = drawn(seed)
        left = calibrated(score + lead * LABELS, change(references), PROMPTS)
        count += log_test(left, LABELS, PROMPTS, 199, seed).p <= 0.05
    return count


def test_innocents_are_accused_no_oftener_than_the_level():
    low, high = scipy.stats.binom.interval(0.999, 300, 0.05)
    assert low <= found() <= high


def test_references_that_know_the_labels_break_it_both_ways():
    "One that agrees with the suspect hides the guilty; one that disagrees accuses innocents."
    assert found(lead=1.0, runs=50) == 50
    assert found(lambda references: references + 2 * LABELS, lead=1.0, runs=50) <= 5
    assert found(lambda references: LABELS - references, runs=50) >= 45


def test_references_that_know_the_log_are_refused():
    score = np.random.default_rng(3).normal(size=180) + 3 * LABELS
    p = log_test(score, LABELS, PROMPTS).p
    refused(lambda: check_innocent({"mine": 0.5, "copy": p}), "copy", "knows the log", "give one")
    check_innocent({"mine": 0.006, "other": 0.5})  # .01 is for all of them together


def test_what_is_refused():
    score, references = drawn(4)
    refused(lambda: calibrated(score, [score], PROMPTS), "exactly what the suspect says", "give")
    refused(lambda: calibrated(score, [2 * score - 1], PROMPTS), "exactly what the suspect says")
    refused(lambda: calibrated(score, references[:, 1:], PROMPTS), "(179,)", "give one of each")
    refused(lambda: calibrated(score, references, PROMPTS[1:]), "(179,)", "give one of each")
    for bad in (np.nan, np.inf):
        broken = references.copy()
        broken[0, 5] = bad
        refused(lambda broken=broken: calibrated(score, broken, PROMPTS), "not a finite number")


# The lab


def recipes(**knobs):
    return GeneratorRecipes(generator_scale("mini", rhos=(0, 0.3, 1), **knobs))


def parts_of(recipe):
    "All recipes in a recipe, itself too."
    yield recipe
    for value in recipe.values():
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, dict):
                yield from parts_of(part)


def learnt(model):
    "Names of the pictures that a model was trained on: generations, and splits of real ones."
    kinds = ("generated", "pairs")
    return {recipe_name(part) for part in parts_of(model["pairs"]) if part.get("kind") in kinds}


@pytest.mark.parametrize("rho", [0, 0.3])
def test_own_models_learnt_nothing_that_a_suspect_or_a_log_has(rho):
    r = recipes()
    source = r.sources(["mini-v1-avatars"])[0]
    plan = LogPlan(r, accounts=2)
    captions = recipe_name(r.train(source))  # prompts, not pictures
    theirs = set().union(*(learnt(t.model) for t in log_trials(r, source) if t.kind != "same data"))
    assert not (learnt(own_model(r, source, rho)) - {captions}) & theirs
    logs = {recipe_name(part) for part in log_stages(plan, source)["logs"]}
    assert not learnt(own_model(r, source, rho)) & logs


def test_own_models_are_asked_what_suspects_are_asked():
    r = recipes()
    source = r.sources(["mini-v1-avatars"])[0]
    alone = log_stages(LogPlan(r, repeats=2, restored=0), source)
    beside = log_stages(LogPlan(r, repeats=2, restored=0, own=(0, 0.3)), source)
    own = {recipe_name(own_model(r, source, rho)) for rho in (0, 0.3)}
    for stage, more in (("suspects", 2), ("losses", 2 * 4), ("answers", 2 * 2)):
        assert len(beside[stage]) == len(alone[stage]) + more
    assert own <= {recipe_name(model) for model in beside["suspects"]}
    asked = [x["model"] for x in beside["losses"] if recipe_name(x["model"]) in own]
    assert len(asked) == 2 * 4


def test_other_customers_have_other_logs_models_and_seeds():
    first, later = recipes(), recipes(first_customer=2)
    source = first.sources(["mini-v1-avatars"])[0]
    assert first.source(source) == later.source(source)
    for make in (
        lambda r: r.generated(source, 0),
        lambda r: withheld(r, source, 0),
        lambda r: r.suspect(source, 0.3, 0),
        lambda r: r.innocent(source, "disjoint data", 0),
        lambda r: r.innocent(source, "same data", 0),
        lambda r: own_model(r, source, 0),
        lambda r: own_model(r, source, 0.3),
    ):
        assert make(first) != make(later)
    assert first.suspect(source, 0.3, 2) == later.suspect(source, 0.3, 0)
    assert withheld(first, source, 2) == withheld(later, source, 0)


# Audits


def with_references(monkeypatch, folder, **functions):
    "References that are functions of a file, under names that a model could have."

    def opened(audit, name):
        space, later = (
            {},
            1000 * (1 + list(functions).index(name)),
        )  # else answers were one and the same
        exec((folder / "mine.py").read_text(), space)
        draw = space[functions[name]]
        return Asked(
            lambda prompts, seeds: draw(prompts, [later + s for s in seeds]), {"own": name}
        )

    monkeypatch.setattr(log_audit, "_own_model", opened)


def test_references_take_part_and_are_named(generators, log, monkeypatch):  # noqa: F811
    with_references(monkeypatch, generators, **{"mini-v1": "innocent", "mini-v2": "innocent"})
    for who, state in (("guilty", "evidence"), ("innocent", "cannot decide")):
        file = audit_file(
            generators, log, {"adapter": f"mine:{who}"}, references=["mini-v1", "mini-v2"]
        )
        _, report = audited(file)
        assert report.verdict.state == state
        facts = {fact.name: fact.value for fact in report.asked}
        assert facts["calibrated by"] == "mini-v1, mini-v2"
    _, report = audited(audit_file(generators, log, {"adapter": "mine:guilty"}))
    assert "calibrated by" not in {fact.name for fact in report.asked}


def test_a_reference_that_knows_the_log_stops_the_audit(generators, log, monkeypatch):  # noqa: F811
    with_references(monkeypatch, generators, **{"mini-v1": "innocent", "mini-v2": "guilty"})
    file = audit_file(
        generators, log, {"adapter": "mine:guilty"}, references=["mini-v1", "mini-v2"]
    )
    refused(lambda: audited(file), "mini-v2", "knows the log", "give one")


def test_a_reference_that_is_the_suspect_stops_the_audit(tmp_path, log):  # noqa: F811
    suspect = {"model": "mini-v2", "base": "mini-v1"}
    file = audit_file(tmp_path, log, suspect, references=["mini-v2"])
    assert "the suspect is among them" in " ".join(check_file(read_audit(file)))
    refused(lambda: log_audit.open_log_audit(read_audit(file)), "byte for byte", "your own")


def test_a_classifier_is_calibrated_by_classifiers(tmp_path, log, service):  # noqa: F811
    networks.save_classifier(networks.classifier("resnet", CLASSES), str(tmp_path / "owner"))
    file = audit_file(
        tmp_path / "case",
        log,
        classifier(service[0], "guilty"),
        references=[str(tmp_path / "owner")],
    )
    p, report = audited(file)
    assert p <= 0.01
    assert "owner" in {fact.name: fact.value for fact in report.asked}["calibrated by"]
    told = json.loads(file.read_text()) | {"out": str(tmp_path / "owner" / "report")}
    file.write_text(json.dumps(told))
    assert "test.references" in " ".join(check_file(read_audit(file)))


def test_the_owner_s_own_classifiers_tell_scores_where_a_suspect_tells_labels(
    tmp_path,
    log,  # noqa: F811
    service,  # noqa: F811
):
    networks.save_classifier(networks.classifier("resnet", CLASSES), str(tmp_path / "owner"))
    suspect = classifier(service[0], "guilty") | {"access": "labels"}
    file = audit_file(tmp_path / "case", log, suspect, references=[str(tmp_path / "owner")])
    opened = log_audit.open_log_audit(read_audit(file))
    found = log_audit.measure(opened)
    assert len(np.unique(opened.known.round(6))) > 20  # of six labels a share has seven values
    assert opened.labels and found.scores.std() > 0


def test_a_suspect_that_scores_all_pictures_alike_is_not_called_a_reference():
    _, references = drawn(7)
    for same in (1.0, 5 / 6):
        assert not calibrated(np.full(180, same), references, PROMPTS).any()


def test_what_is_told_before(tmp_path, log, generators):  # noqa: F811
    suspect = {"adapter": "mine:innocent"}
    file = audit_file(generators, log, suspect)
    alone = read_audit(file)
    assert "References: none" in " ".join(outlook(alone))
    beside = read_audit(file, {"test.references": ["mini-v1", "mini-v2"]})
    assert check_file(beside) == []
    told = " ".join(outlook(beside))
    assert "References: 2 of your own" in told and "for references" in told
    assert stages(beside)["suspect"] > 2 * stages(alone)["suspect"] > 0
    missing = read_audit(file, {"test.references": [str(tmp_path / "gone")]})
    assert "there is no" in " ".join(check_file(missing))
    refused(lambda: read_audit(file, {"test.references": ["mini-v1", "mini-v1"]}), "twice")


def test_references_without_a_log_do_not_count(tmp_path):
    file = tmp_path / "audit.yaml"
    file.write_text(
        "owned: {model: mini-v1, trained_on: ./x}\nsuspect: {model: mini-v2}\n"
        "test: {references: [mini-v1]}\n"
    )
    assert "does not count" in " ".join(check_file(read_audit(file)))


def test_hopes_are_those_of_calibrated_suspects():
    for access in ("weights", "prompts", "classes", "labels"):
        plain, more = (expected_power(access, 100, 0.01, c).chance.sum() for c in (False, True))
        assert more > plain
    assert expected_power("scores", 100).equals(expected_power("classes", 100))
    assert expected_power("pictures", 100, 0.01, True).equals(expected_power("pictures", 100, 0.01))


def test_what_pages_say_of_the_shipped_run():
    "By answers nobody is lost, and two of three are found; by weights one is gained and one lost, at ρ = .1."
    table = read_results(shipped_results("release"), "release")[1][""]
    guilty, who = table[table.kind == "infringing"], ["source", "account", "rho"]

    def found(access):
        return guilty[guilty.access == access].set_index(who).p <= 0.01

    plain, more = found("prompts only"), found("prompts only, calibrated")
    assert (~plain).sum() == 3 and (more & ~plain).sum() == 2 and not (plain & ~more).any()
    plain, more = found("open weights"), found("open weights, calibrated")
    for one in (more & ~plain, plain & ~more):
        assert one.sum() == 1 and one[one].index.get_level_values("rho").tolist() == [0.1]


def test_references_are_asked_before_the_suspect(generators, log, monkeypatch):  # noqa: F811
    "A reference that is refused costs no question."
    asked = []

    def suspect(prompts, seeds):
        asked.extend(prompts)
        raise AssertionError("the suspect was asked")

    with_references(monkeypatch, generators, **{"mini-v1": "guilty"})
    file = audit_file(generators, log, {"adapter": "mine:innocent"}, references=["mini-v1"])
    opened = log_audit.open_log_audit(read_audit(file))
    opened.suspect = Asked(suspect, {"adapter": "counted"})
    refused(lambda: log_audit.measure(opened), "mini-v1", "knows the log")
    assert asked == []
