"Guards before the lab's own logs, and bounds on what was learnt beside the truth."

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import isotonic_regression
from sklearn.isotonic import IsotonicRegression

from trainprove_nb.data.pairs import pairs
from trainprove_nb.evidence.how_much import _read_off
from trainprove_nb.lab import doubt_trials
from trainprove_nb.lab.doubt_trials import _bounds, measure_guards, truly_learnt
from trainprove_nb.lab.generator_recipes import GeneratorRecipes
from trainprove_nb.lab.generator_scales import generator_scale
from trainprove_nb.lab.log_trials import LogPlan
from trainprove_nb.report.doubts import biases, falsely_learnt, guards_sentence, learnt_coverage
from trainprove_nb.report.results import read_results, shipped_results

RNG = np.random.default_rng(0)


def a_pool(accounts=1, prompts=8, each=2):
    "Pictures of logs: of every prompt so many released ones, and twice as many withheld."
    per = 3 * each
    images = RNG.integers(0, 255, (accounts * prompts * per, 16, 16, 3), dtype=np.uint8)
    released = np.tile(np.arange(per) < each, accounts * prompts)
    prompt = np.tile(np.repeat([f"p{k}" for k in range(prompts)], per), accounts)
    account = np.repeat(np.arange(accounts), prompts * per)
    return SimpleNamespace(images=images, released=released, prompts=prompt, account=account)


def trained_on(pictures):
    "A lab and a trial: the suspect's data are these pictures."
    data = pairs(list(pictures), ["a caption"] * len(pictures))
    lab = SimpleNamespace(pairs=lambda recipe: data)
    return lab, SimpleNamespace(model={"pairs": {}})


def test_what_was_truly_learnt_is_counted_in_prompts():
    there = a_pool()
    given = np.flatnonzero(there.released)  # two of each prompt
    assert truly_learnt(*trained_on(there.images[given]), there, 0) == 1
    assert truly_learnt(*trained_on(there.images[given[:4]]), there, 0) == 2 / 8
    assert truly_learnt(*trained_on(there.images[given[[0, 2]]]), there, 0) == 2 / 8
    kept = there.images[~there.released]
    assert truly_learnt(*trained_on(kept), there, 0) == 0, "withheld pictures do not count"
    changed = there.images[given].copy()
    changed[:, 0, 0] ^= 1
    assert truly_learnt(*trained_on(changed), there, 0) == 0, "pixel by pixel"


def test_what_was_truly_learnt_of_another_account_is_nothing():
    there = a_pool(accounts=2)
    mine = there.images[there.released & (there.account == 0)]
    assert [truly_learnt(*trained_on(mine), there, k) for k in (0, 1)] == [1, 0]


@pytest.fixture
def plan():
    return LogPlan(GeneratorRecipes(generator_scale("mini")), accounts=1)


@pytest.mark.parametrize("giveaway", ["", "blind", "older"])
def test_guards_speak_where_the_sides_differ_and_else_keep_still(plan, monkeypatch, giveaway):
    there = a_pool(prompts=40, each=1)
    order = np.argsort(~there.released, kind="stable")  # a side after the other, as in a lab
    for name in ("images", "released", "prompts", "account"):
        setattr(there, name, getattr(there, name)[order])
    if giveaway == "blind":
        there.images = np.where(
            there.released[:, None, None, None], there.images // 2, there.images
        )
    known = RNG.normal(size=len(there.prompts))
    known -= 2 * (there.released if giveaway == "older" else 0)  # a loss: lower is better
    losses = {True: known[there.released], False: known[~there.released]}
    monkeypatch.setattr(doubt_trials, "pool", lambda plan, source: [True, False])
    monkeypatch.setattr(doubt_trials, "picture_losses", lambda recipes, model, part: part)
    lab = SimpleNamespace(array=lambda side: losses[side][:, None])
    source = plan.recipes.sources(["mini-v1-avatars"])[0]
    (row,) = measure_guards(lab, plan, source, there, draws=199).to_dict("records")
    assert {name for name in ("blind", "older") if row[name] <= 0.01} == {giveaway} - {""}


def test_bounds_are_asked_of_scores_that_are_there():
    there = a_pool(prompts=30, each=1)
    lead = RNG.normal(size=90) + 3 * there.released
    scores = {"open weights": lead, "image to image": np.full(90, np.nan)}
    mine = np.arange(90)
    (guilty,) = _bounds(there, scores, mine, True)
    (innocent,) = _bounds(there, scores, mine, False)
    assert guilty["access"] == "open weights" and guilty["at_least"] > 0.2 and guilty["gamma"] > 2
    assert np.isnan(innocent["gamma"]) and innocent["at_least"] == guilty["at_least"]


def test_tables_of_bounds_by_hand():
    rows = [
        ("infringing", 0.3, 0.6, 0.1, 2.0),
        ("infringing", 0.3, 0.6, 0.7, 4.0),
        ("infringing", 1.0, 1.0, 0.5, 9.0),
        ("disjoint data", 0.0, 0.0, 0.0, np.nan),
        ("another account", 1.0, 0.0, 0.02, np.nan),
    ]
    names = ["kind", "rho", "truly", "at_least", "gamma"]
    bounds = pd.DataFrame(rows, columns=names).assign(access="open weights")
    found = learnt_coverage(bounds)
    assert found["at least"].to_dict() == {("open weights", 0.3): 0.4, ("open weights", 1.0): 0.5}
    assert [text[:4] for text in found.held] == ["0.50", "1.00"]
    assert falsely_learnt(bounds).loc["open weights"].to_dict() == {
        "above 0": "1 of 2",
        "most": 0.02,
    }
    assert biases(bounds).loc["open weights"].to_dict() == {0.3: 3.0, 1.0: 9.0}


def test_the_sentence_of_guards_counts_logs():
    guards = pd.DataFrame({"blind": [0.4, 0.01, 0.9], "older": [0.2, 0.3, 0.5]})
    told = guards_sentence(guards)
    assert "3 logs" in told and "p from 0.01 to 0.90, 1 at .01 or below" in told
    assert "p from 0.20 to 0.50, 0 at .01" in told


def test_the_curve_of_shadows_is_sklearn_s():
    rng = np.random.default_rng(1)
    for _ in range(20):
        rhos = rng.choice([0, 0.1, 0.3, 0.5, 1], 30)
        effects = 3 * rhos + rng.normal(size=30)
        levels = np.unique(rhos)
        theirs = IsotonicRegression().fit(rhos, effects).predict(levels)
        heights, which = np.unique(theirs.round(12), return_inverse=True)
        middles = np.bincount(which, levels) / np.bincount(which)
        at = rng.normal(1, 2, 10)
        assert _read_off(effects, rhos, at) == pytest.approx(np.interp(at, heights, middles))
    assert isotonic_regression([2.0, 1.0]).x.tolist() == [1.5, 1.5]


def test_what_the_page_of_the_release_says_of_bounds_and_guards():
    tables = read_results(shipped_results("release"), "release")[1]
    bounds = tables["bounds"]
    guilty = bounds[bounds.kind == "infringing"]
    assert (guilty.at_least <= guilty.truly).all()  # "no bound lies above the truth"
    innocent = bounds[bounds.kind != "infringing"]
    assert (innocent.at_least > 0).mean() < 0.05 and innocent.at_least.max() * 150 < 6
    found = learnt_coverage(bounds)["at least"]
    for access in ("open weights", "open weights, calibrated"):  # "two fifths"
        assert found[access, 1.0] == pytest.approx(0.4, abs=0.03)
    for access in ("prompts only", "prompts only, calibrated"):  # "a fifth"
        assert found[access, 1.0] == pytest.approx(0.2, abs=0.03)
    assert (found.xs(0.3, level="ρ") <= 0.1).all()  # "a tenth or less"
    gamma = biases(bounds).drop(index="prompts only, pixels")
    assert (gamma[1.0] > 4).all()
    for access in ("prompts only", "prompts only, calibrated"):  # "a bias of a fifth"
        assert gamma.loc[access, 0.3] == pytest.approx(1.2, abs=0.05)
    guards = tables["guards"]
    assert len(guards) == 12 and (guards[["blind", "older"]] > 0.01).all(axis=None)
