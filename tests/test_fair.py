"A fair chance for the first paper: doses, the ladder of looks, and claims that are judged as they were planned."

import numpy as np
import pandas as pd
import pytest
from helpers import refused
from scipy import stats

from trainprove_nb.lab.generator_recipes import GeneratorRecipes
from trainprove_nb.lab.generator_scales import generator_scale
from trainprove_nb.lab.generator_trials import generator_trials
from trainprove_nb.report import fair, fair_plans, looks
from trainprove_nb.report.doses import KEYS, SUSPECT, generator_doses, unlike
from trainprove_nb.report.results import read_results, shipped_results

MINI = {"scale": "mini", "knobs": fair.fair_knobs("mini"), "N": 30}
SMOKE = {"scale": "smoke", "knobs": {}, "sources": ["mini-v1-avatars"], "N": None, "Ns": None}
SMOKE |= {"strategies": ["detection"], "delta0": 0.15, "fpr": 0.05, "metric": "rms"}


# Doses


@pytest.mark.parametrize("N", [20, 30, 50, 100])
def test_at_these_doses_the_papers_numbers_can_be_compared(N):
    assert unlike(generator_doses(MINI, N), [KEYS, SUSPECT]) == ""
    assert "keys" in unlike(generator_doses({**MINI, "knobs": {}}, N), [KEYS, SUSPECT])


def test_knobs_that_are_given_count():
    assert fair.fair_knobs("mini", {"train": 200})["train"] == 200
    assert fair.fair_knobs("smoke") == fair.fair_knobs("paper") == {}


# The ladder


def test_a_rung_is_so_many_looks():
    scale = generator_scale("mini", fair.fair_knobs("mini"))
    training = looks.at_looks(scale, 24).suspect_training
    assert training["steps"] * training["batch_size"] == 24 * scale.pairs
    assert {**training, "steps": 0} == {**scale.suspect_training, "steps": 0}


def test_nobody_on_the_ladder_is_judged():
    recipes = GeneratorRecipes(generator_scale("mini", fair.fair_knobs("mini")))
    for source in recipes.sources(fair.FAIR_SOURCES):
        judged = [t for t in generator_trials(recipes, source) if t.kind != "calibration"]
        ladder = looks.ladder_trials(recipes, source)
        assert not [t for t in ladder if t.model in [j.model for j in judged]]
        seeds = {j.model["pairs"]["seed"] for j in judged if "seed" in j.model["pairs"]}
        assert not seeds & {t.model["pairs"]["seed"] for t in ladder}


def rungs(*conf):
    return pd.DataFrame(
        {
            "looks": [6, 12, 24],
            "kind": "infringing",
            "strategy": "detection",
            "rho": 1.0,
            "conf_calibrated": conf,
        }
    )


@pytest.mark.parametrize(
    "conf, chosen",
    [((0.1, 0.6, 0.9), 12), ((0.7, 0.2, 0.1), 6), ((0.1, 0.2, 0.3), 24), ((0.1, 0.5, 0.4), 12)],
)
def test_the_first_rung_that_remembers_enough_is_kept(conf, chosen):
    assert looks.chosen_looks(rungs(*conf)) == chosen


def test_the_rule_sees_neither_random_keys_nor_a_small_rho():
    table, other = rungs(0.1, 0.6, 0.9), rungs(1.0, 1.0, 1.0)
    more = [table, other.assign(strategy="random"), other.assign(rho=0.3)]
    assert looks.chosen_looks(pd.concat(more)) == 12


@pytest.mark.parametrize("given", [[], [0], [-1], ["six"], [6, 2000], [float("nan")]])
def test_rungs_that_are_none(tmp_path, given):
    asked = {**SMOKE, "rungs": given}
    refused(lambda: fair.plan_fair(asked, str(tmp_path / "lab"), str(tmp_path)), "rungs", "give")


# Claims


def measured(confs):
    "Conf of three suspects of one source at ρ = .3 and 1; strategy -> a conf for each."
    rows = [
        dict(source="s", kind="infringing", strategy=strategy, rho=rho, k=k, conf_calibrated=c)
        for strategy, values in confs.items()
        for rho in (0.3, 1.0)
        for k, c in enumerate(values)
    ]
    return pd.DataFrame(rows)


def numbered(confs):
    "Conf of three suspects at ρ = 1 by detection-based keys; N -> a conf for each."
    parts = [measured({"detection": values}).assign(N=n) for n, values in confs.items()]
    return pd.concat(parts, ignore_index=True)


FIG6 = measured(
    {"detection": [0.9, 0.8, 0.95], "generation": [0.5, 0.4, 0.6], "random": [0.3, 0.2, 0.25]}
)
KNOWN = pd.DataFrame({"source": ["s", "s"], "strategy": "detection", "own_conf": [0.1, 0.95]})
ENDS = {"conf_calibrated_high": [0.4, 0.97, 1.0, 1.0], "rho": [1.0, 1.0, 0.3, 1.0]}
WHO = ["infringing"] * 3 + ["calibration"]
SEEN = pd.DataFrame({**ENDS, "kind": WHO, "source": "s", "strategy": "detection"})
LADDERS = {"sources": KNOWN, "looks": SEEN}
NUMBERS = numbered({20: [0.9, 0.8, 0.9], 30: [0.8, 0.7, 0.85], 50: [0.7, 0.6, 0.7]})


def claim(table, words):
    (row,) = table[table.claim.str.contains(words, regex=False)].itertuples()
    return row


def test_suspects_are_compared_with_themselves():
    row = claim(fair.fair_claims(FIG6, NUMBERS, LADDERS, MINI), "(Strategy 1)")
    gains = np.array([0.6, 0.6, 0.7])
    low, _ = stats.t.interval(0.95, 2, gains.mean(), stats.sem(gains))
    assert row.here == pytest.approx(gains.mean()) and row.low == pytest.approx(low)
    assert row.verdict == "reproduced" and row.models == "3 suspects a point, 2 points"


def test_the_worst_point_counts():
    worse = FIG6.copy()
    at = (worse.strategy == "detection") & (worse.rho == 1.0)
    worse.loc[at, "conf_calibrated"] = [0.1, 0.15, 0.05]
    row = claim(fair.fair_claims(worse, NUMBERS, LADDERS, MINI), "(Strategy 1)")
    assert row.here == pytest.approx(-0.15) and row.verdict == "not reproduced"


def test_how_many_keys_are_asked_changes_conf_of_the_same_suspect():
    row = claim(fair.fair_claims(FIG6, NUMBERS, LADDERS, MINI), "N = 20")
    assert row.here == pytest.approx(-np.mean([0.1, 0.1, 0.05])) and row.verdict == "not reproduced"
    row = claim(fair.fair_claims(FIG6, NUMBERS, LADDERS, MINI), "N = 50")
    assert row.here == pytest.approx(np.mean([0.1, 0.1, 0.15])) and row.bar == "< 0.05"


def test_at_other_doses_nothing_is_judged():
    table = fair.fair_claims(FIG6, NUMBERS, LADDERS, {**MINI, "knobs": {}})
    assert set(table.verdict) == {"not comparable"}


@pytest.mark.parametrize(
    "ladders",
    [
        {**LADDERS, "sources": KNOWN[:1]},
        {**LADDERS, "looks": SEEN[:1].assign(conf_calibrated_high=0.1)},
    ],
)
def test_no_suspect_can_know_more_than_its_source_or_than_one_that_is_not_judged(ladders):
    table = fair.fair_claims(FIG6, NUMBERS, ladders, MINI)
    assert claim(table, "above .6").verdict == claim(table, "(Strategy 1)").verdict
    assert claim(table, "above .6").verdict == "no chance here"


def test_the_ceiling_is_that_of_the_source_that_has_the_least():
    other = {name: t.assign(source="t") for name, t in LADDERS.items()}
    other["sources"] = other["sources"].assign(own_conf=0.3)
    both = {name: pd.concat([LADDERS[name], other[name]]) for name in LADDERS}
    assert fair.fair_ceiling(**LADDERS) == 0.95 and fair.fair_ceiling(**both) == 0.3


def test_claims_that_were_not_planned_are_told():
    full = pd.concat([NUMBERS, numbered({100: [0.6, 0.5, 0.6]})])
    table = fair.fair_claims(FIG6, full, LADDERS, MINI)
    assert fair.against_plan(table) == []
    changed = table.assign(bar=table.bar.replace("> 0.6", "> 0.4"))
    assert [d.split(":")[0] for d in fair.against_plan(changed)] == ["judged otherwise"]
    added = pd.concat([table, table[:1].assign(claim="another")])
    assert fair.against_plan(added) == ["not planned: another"]
    assert fair.against_plan(table[1:])[0].startswith("not judged")


def test_chances_grow_with_suspects():
    folder = str(shipped_results("fig6").parent)
    few, many = (fair.planned_chances(folder, n) for n in (3, 20))
    assert (many.yes >= few.yes - 0.03).all() and many.yes.mean() > few.yes.mean() + 0.2
    assert np.allclose(many[["yes", "open", "no"]].sum(axis=1), 1)


# Table 1 and TrainProVe


TABLE1 = {"scale": "mini", "N": 30, "suspects": 12, "shadows": 4}
TABLE1 |= {"knobs": fair.fair_knobs("mini", fair_plans.TABLE1_SHADOWS)}


def scored(innocent, infringing):
    "Scores of 36 innocents of three kinds and of 48 infringers of 12 accounts."
    kinds = {"disjoint data": innocent, "same data": innocent, "other corpus": innocent}
    rows = [dict(kind=kind, rho=0.0, k=k, score=x) for kind, x in kinds.items() for k in range(12)]
    rows += [
        dict(kind="infringing", rho=rho, k=k, score=infringing)
        for rho in (0.3, 0.5, 0.7, 1.0)
        for k in range(12)
    ]
    table = pd.DataFrame(rows).assign(source="s", discriminator="images", threshold=0.5)
    table["score"] += np.random.default_rng(0).normal(0, 1e-3, len(table))  # no ties
    return table.assign(model=[f"m{i}" for i in range(len(table))])


def test_table1_can_be_reproduced_and_can_fail():
    apart = fair_plans.fair_table1_claims({"": scored(0.1, 0.9)}, TABLE1)
    assert set(apart.verdict) == {"reproduced"}
    alike = fair_plans.fair_table1_claims({"": scored(0.4, 0.4)}, TABLE1)
    assert "reproduced" not in set(alike.verdict)
    assert alike[alike.claim.str.startswith("AUC")].verdict.item() == "not reproduced"


def test_table1_is_judged_as_planned():
    tables = [scored(0.1, 0.9).assign(discriminator=name) for name in fair_plans.DISCRIMINATORS]
    claims = fair_plans.fair_table1_claims({"": pd.concat(tables)}, TABLE1)
    planned = fair_plans.planned_table1()
    assert fair.against_plan(claims, planned) == []
    assert fair.against_plan(claims[1:], planned)[0].startswith("not judged")
    judged = claims.set_index("claim")[["chance_yes", "chance_no"]]
    expected = planned.set_index("claim")[["yes", "no"]]
    assert np.allclose(judged.loc[expected.index], expected)


def first_trainprove():
    return read_results(str(shipped_results("trainprove")), "trainprove")


def test_trainprove_is_judged_as_planned():
    parameters, tables, numbers = first_trainprove()
    claims = fair_plans.fair_trainprove_claims(tables, numbers, parameters)
    planned = fair_plans.planned_trainprove(str(shipped_results("trainprove").parent))
    assert fair.against_plan(claims, planned) == []


def test_suspects_that_err_at_home_say_nothing_of_the_paper():
    parameters, tables, numbers = first_trainprove()
    assert fair_plans.at_home(tables[""]) < fair_plans.AT_HOME
    claims = fair_plans.fair_trainprove_claims(tables, numbers, parameters)
    theirs = claims[claims.whose == "the paper's"]
    assert set(theirs.verdict) == {"not comparable"} and theirs.why.str.contains("at home").all()
    able = tables[""].assign(accuracy=0.99)
    claims = fair_plans.fair_trainprove_claims({**tables, "": able}, numbers, parameters)
    assert "not comparable" not in set(claims.verdict)


def test_at_other_scales_the_plan_leaves_knobs_alone(tmp_path):
    asked = dict(scale="smoke", knobs={}, batch_size=None, alpha=0.05)
    plan = fair_plans.plan_fair_trainprove(asked, str(tmp_path / "lab"), str(tmp_path / "out"))
    assert plan.parameters["knobs"] == {} and {t.kind for t in plan.suspects} == {"whole"}
