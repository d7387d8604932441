"Rates that hold: what is promised of intervals, thresholds and verdicts, by simulation and by hand."

import io
import json
import re
import subprocess
from functools import partial
from html import unescape

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from helpers import NBS, ROOT, refused

from trainprove_nb.attribution.conf import conf, model_delta0
from trainprove_nb.evidence import coverage
from trainprove_nb.evidence.rates import (
    Rate,
    auc_interval,
    auc_within,
    independent,
    mean_interval,
    models_needed,
    proportion_interval,
    resemblance_error,
    resemblance_index,
    tpr_at_fpr,
)
from trainprove_nb.lab.discriminator_trials import (
    best_threshold,
    left_out_recipes,
    rates,
    scores_recipe,
    with_logs,
    with_other_thresholds,
)
from trainprove_nb.lab.generator_recipes import GeneratorRecipes
from trainprove_nb.lab.generator_scales import generator_scale
from trainprove_nb.lab.generator_trials import shadow_trials
from trainprove_nb.lab.store import recipe_name
from trainprove_nb.report.classifier_sentences import lead_not_proof
from trainprove_nb.report.doses import classifier_doses, generator_doses, looks, unlike
from trainprove_nb.report.generator_audit import judge_generator
from trainprove_nb.report.hard_cases import accusations, innocents_by_log
from trainprove_nb.report.hard_sentences import hard_sentences
from trainprove_nb.report.history import CHANGES, EARLIER, LATER, history_table, origins_apart
from trainprove_nb.report.ledger import judge, judged_at_all, ledger, ledger_page, untested
from trainprove_nb.report.results import read_results
from trainprove_nb.report.verdicts import (
    F1,
    Areas,
    Caught,
    Means,
    Shares,
    attainable,
    chances,
    folded,
    verdict,
    worst,
)

RESULTS = NBS / "experiments/results"


def shipped(name):
    "Parameters, tables and numbers of a shipped result."
    return read_results(RESULTS / name, name)


# How many innocents a rate needs


@pytest.mark.parametrize("rate, models", [(0.5, 1), (0.1, 9), (0.05, 19), (0.01, 99), (1, 0)])
def test_a_rate_needs_innocents(rate, models):
    assert models_needed(rate) == models
    apart = np.zeros(max(models, 1)), np.ones(5)
    assert tpr_at_fpr(*apart, rate).value == 1
    if models > 1:
        fewer = tpr_at_fpr(np.zeros(models - 1), np.ones(5), rate)
        assert str(fewer) == "not estimable" and np.isnan(list(fewer)).all()


@pytest.mark.parametrize("rate", [0, -0.1, 1.5, float("nan")])
def test_a_rate_that_is_none(rate):
    refused(lambda: models_needed(rate), f"rate = {rate}", "above 0 and at most 1")


@pytest.mark.parametrize("n, fpr", [(9, 0.1), (36, 0.1), (19, 0.05), (30, 0.25)])
def test_a_new_innocent_is_above_the_threshold_at_most_at_the_rate(n, fpr):
    rng = np.random.default_rng(n)
    found = np.mean(
        [
            tpr_at_fpr(rng.exponential(size=n), rng.exponential(size=50), fpr).value
            for _ in range(300)
        ]
    )
    k = int(fpr * (n + 1) + 1e-9) - 1
    assert found == pytest.approx((k + 1) / (n + 1), abs=0.02) and found <= fpr + 0.015


def test_the_threshold_counts_models_where_they_have_several_scores():
    "Eighteen innocents before two sources each: 10% allows none of them above, not two of 36 scores."
    scores = np.repeat(np.arange(18.0), 2)
    assert tpr_at_fpr(scores, np.r_[16.5, 17.5], 0.1, (18, 2)).value == 0.5
    assert tpr_at_fpr(scores, np.r_[16.5, 17.5], 0.1).value == 1  # 36 models: two may be above
    nineteen = np.repeat(np.arange(19.0), 2)  # one model may be above, with both of its scores
    assert tpr_at_fpr(nineteen, [16.5, 17.5], 0.1, (19, 2)).value == 0.5


# What counts as one


def test_a_log_counts_once_then_a_model_then_a_row():
    table = pd.DataFrame({"log": list("aabb"), "model": list("xyzz"), "score": [1, 2, 3, 4]})
    assert independent(table) == 2
    assert independent(table.drop(columns="log")) == 3
    assert independent(table[["score"]]) == 4


def two_sources(logs):
    "Innocents and infringers of two sources; of each source four infringers on two logs."
    rng = np.random.default_rng(0)
    innocent = pd.DataFrame({"source": list("aaabbb"), "score": rng.normal(size=6)})
    guilty = pd.DataFrame({"source": list("aaaabbbb"), "score": rng.normal(1, 1, 8)})
    return innocent, guilty.assign(log=list("11223344")) if logs else guilty


def test_the_interval_of_an_auc_counts_logs():
    by_row, by_log = (auc_within(*two_sources(logs), "score") for logs in (False, True))
    assert by_row.value == by_log.value and by_log.n == (6, 4) and by_row.n == (6, 8)
    assert (by_row.low, by_row.high) == tuple(auc_interval([by_row.value], [(3, 4)] * 2))[1:]
    assert (by_log.low, by_log.high) == tuple(auc_interval([by_row.value], [(3, 2)] * 2))[1:]
    assert by_log.low < by_row.low and by_log.high >= by_row.high


def test_infringers_of_one_customer_share_a_log_at_every_rho():
    table = pd.DataFrame(
        {
            "source": ["s", "s", "s", "t", "s", "t"],
            "kind": ["infringing"] * 4 + ["same data"] * 2,
            "k": [0, 0, 1, 0, 0, 0],
            "model": ["m1", "m2", "m3", "m4", "m5", "m5"],
        }
    )
    logs = with_logs(table).log
    assert logs[0] == logs[1] and logs[:4].nunique() == 3
    assert logs[4] == logs[5] == "m5"  # one innocent before two sources
    assert with_logs(table.drop(columns="model")).log.nunique() == 5


# The index, and its error


@pytest.mark.parametrize("nearer, shared", [(0, 0), (1, 0), (2, 0), (1, 1 / 3)])
def test_the_error_of_the_index_is_what_strangers_show(nearer, shared):
    rng, small = np.random.default_rng(1), 0
    for _ in range(3000):
        known = np.sqrt(1 - shared) * rng.normal(size=5) + np.sqrt(shared) * rng.normal()
        small += resemblance_index(rng.normal() - nearer, known, shared) <= 0.05
    assert small / 3000 == pytest.approx(resemblance_error(5, nearer, shared), abs=0.02)


def test_the_error_of_the_index_is_alpha_for_its_own_recipe_and_grows_with_the_distance():
    assert resemblance_error(5, 0) == pytest.approx(0.05)
    errors = [resemblance_error(5, sd) for sd in (0, 0.5, 1, 2)]
    assert errors == sorted(errors) and errors[-1] > 0.4


def test_an_audit_of_a_generator_names_an_index_and_no_p():
    shadows = pd.DataFrame(
        {
            "kind": ["infringing"] * 2 + ["disjoint data"] * 5,
            "rho": [1.0, 1.0] + [0.0] * 5,
            "base": "mini-v1",
            "mean_distance": [0.1, 0.12, 0.2, 0.21, 0.22, 0.2, 0.23],
        }
    )
    scores = dict(conf=0.5, conf_low=0.3, conf_high=0.7, mean_distance=0.1, contrast=0.0)
    found = judge_generator(scores, shadows)
    assert "Resemblance index" in str(found) and "p =" not in str(found)
    assert f"{resemblance_error(5, 2, 1 / 3):.2f}" in str(found) and "lead, not proof" in str(found)
    assert {"index", "indices"} <= set(found.to_dict()) and not {"p", "pvalues"} & set(
        found.to_dict()
    )


# A threshold for one suspect


def innocents(rng, models):
    return np.exp(0.7 * rng.normal(size=(models, 1)) + rng.normal(size=(models, 30)))


@pytest.mark.parametrize("fpr, level, models", [(0.05, 0.05, 19), (0.1, 0.2, 9), (0.05, 0.1, 25)])
def test_a_new_innocent_has_too_many_answers_within_delta0_at_most_at_the_level(fpr, level, models):
    rng, n = np.random.default_rng(0), 2000
    over = [
        (innocents(rng, 1) <= model_delta0(innocents(rng, models), fpr, level)).mean() > fpr
        for _ in range(n)
    ]
    promised = int(level * (models + 1) + 1e-9) / (models + 1)
    assert scipy.stats.binomtest(sum(over), n, promised).pvalue > 0.001


def test_delta0_for_one_suspect_is_the_largest_that_the_ranks_allow():
    distances = innocents(np.random.default_rng(3), 39)
    found = model_delta0(distances)
    over = [(d <= found).mean() > 0.05 for d in distances]
    larger = [(d <= distances[distances > found].min()).mean() > 0.05 for d in distances]
    assert sum(over) == 1 < sum(larger) == 2  # of 39 models the level of .05 allows two of forty


def test_delta0_for_one_suspect_of_answers_that_tie():
    distances = np.full((19, 10), 0.2)
    delta0 = model_delta0(distances)
    assert delta0 < 0.2 and conf(distances[0], delta0).value == 0


@pytest.mark.parametrize(
    "call, says",
    [
        (partial(model_delta0, np.ones((2, 30))), "2 calibration models.*at least 19.*0.33"),
        (partial(model_delta0, np.ones((30, 30)), 0), "fpr = 0.*between 0 and 1"),
        (partial(model_delta0, np.ones((30, 30)), 0.05, 1), "level = 1.*between 0 and 1"),
    ],
)
def test_delta0_for_one_suspect_refuses(call, says):
    refused(call, says)


# Where a discriminator's line is


@pytest.mark.parametrize("seed", range(5))
def test_the_best_threshold_is_the_best_of_all(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=7).round(1), rng.normal(1, 1, 5).round(1)

    def right(line):
        return (a < line).mean() + (b >= line).mean()

    candidates = [right(x) for x in np.arange(-4, 5, 0.05)]
    assert right(best_threshold(a, b)) == pytest.approx(max(candidates))


def test_the_best_threshold_of_scores_that_are_all_alike():
    assert best_threshold([0.3, 0.3], [0.3]) == 0.3


def judged(seed=0):
    "Scores of three sources whose lines lie at different heights; one innocent stands before two."
    rng, rows = np.random.default_rng(seed), []
    for place, source in enumerate("abc"):
        for k in range(6):
            kind = "infringing" if k < 3 else "same data"
            score = place + (1.0 if k < 3 else 0.0) + 0.1 * rng.random()
            rows.append(dict(source=source, kind=kind, k=k, model=f"{source}{k}", score=score))
    table = pd.DataFrame(rows)
    table.loc[table.model == "b5", "model"] = "a5"
    return table


def test_a_line_from_other_sources_does_not_look_at_its_own():
    table = judged()
    moved = table.assign(score=table.score.where(table.source != "a", table.score * 7 - 3))
    lines, after = (with_other_thresholds(t) for t in (table, moved))
    own = table.source == "a"
    assert (lines.threshold[own] == after.threshold[own]).all()
    assert (lines.threshold[~own] != after.threshold[~own]).any()
    both = (table.model == "a5") & (table.source == "b")  # an innocent that is judged there too
    on_line = table.assign(score=table.score.mask(both, lines.threshold[0]))
    assert (with_other_thresholds(on_line).threshold[own] == lines.threshold[own]).all()
    without = table[~own & (table.model != "a5")]
    guilty = without.kind == "infringing"
    assert lines.threshold[0] == best_threshold(without.score[~guilty], without.score[guilty])


def test_rates_go_by_the_row_own_threshold():
    table = judged().drop(columns="k")
    assert rates(table)["accuracy"].value == pytest.approx(3 / 18 + 2 / 3 * 0.5 + 1 / 6)
    own = table.assign(threshold=table.source.map({"a": 0.5, "b": 1.5, "c": 2.5}))
    assert rates(own)["accuracy"].value == 1
    assert rates(own)["AUC"] == rates(table)["AUC"]


def test_stricter_rates_are_wider_and_say_what_cannot_be_had():
    usual, strict = (rates(judged(), level=level) for level in (0.95, 0.99))
    for name in ("accuracy", "AUC"):
        assert strict[name].low < usual[name].low and strict[name].value == usual[name].value
    assert str(usual["TPR@10%FPR"]) == "not estimable"


RECIPES = GeneratorRecipes(generator_scale("mini", shadows=3))
EVERY = GeneratorRecipes(generator_scale("mini", shadows=3, every_rho=True))
SOURCE = RECIPES.sources(["mini-v1-avatars"])[0]


def test_shadows_at_every_rho_are_the_usual_ones_and_more():
    usual, every = (
        [(t.kind, t.rho, recipe_name(t.model)) for t in shadow_trials(r, SOURCE)]
        for r in (RECIPES, EVERY)
    )
    assert set(usual) < set(every)
    guilty = [rho for kind, rho, _ in every if kind == "infringing"]
    assert sorted(guilty) == sorted(3 * [0.3, 0.5, 0.7, 1.0])
    assert [rho for kind, rho, _ in usual if kind == "infringing"] == [1.0, 0.7, 0.5]


def test_the_knob_changes_no_recipe_where_it_is_off():
    off = GeneratorRecipes(generator_scale("mini", shadows=3, every_rho=False))
    assert scores_recipe(off, SOURCE, "images") == scores_recipe(RECIPES, SOURCE, "images")
    assert scores_recipe(EVERY, SOURCE, "images") != scores_recipe(RECIPES, SOURCE, "images")


def test_a_left_out_shadow_is_judged_by_all_the_others():
    found = left_out_recipes(EVERY, SOURCE, "distances")
    shadows = [t.answers["detection"] for t in shadow_trials(EVERY, SOURCE)]
    assert [t.answers["detection"] for t, _ in found] == shadows
    for trial, recipe in found:
        own, learnt = trial.answers["detection"], recipe["innocent"] + recipe["infringing"]
        assert recipe["judged"] == [own] and own not in learnt
        assert len(learnt) == len(shadows) - 1


def test_one_shadow_cannot_be_left_out():
    one = GeneratorRecipes(generator_scale("mini", shadows=1))
    refused(
        lambda: left_out_recipes(one, SOURCE, "distances"),
        "1 infringing and 3 innocent shadows",
        "at least 2 of each",
    )


# The hard cases count logs


def test_accusations_count_logs():
    table = pd.DataFrame(
        {
            "case": "innocents",
            "value": "all",
            "source": ["s", "s", "s", "s"],
            "kind": "same data",
            "rho": 0.0,
            "k": [0, 0, 1, 1],
            "answers": list("abcd"),
            "p": [0.01, 0.5, 0.5, 0.5],
        }
    )
    row = accusations(table).loc["same data"]
    assert (row.accused, row.of, row.logs) == (1, 4, 2)
    assert (row.low, row.high) == proportion_interval(0.5, 2)
    again = pd.concat([table, table.iloc[:1].assign(case="base")])
    logs = innocents_by_log(again)
    assert logs.tested.tolist() == [2, 2] and logs.accused.tolist() == [1, 0]


def test_the_hard_cases_make_no_p_of_tests_that_share_a_log():
    parameters, tables, _ = shipped("hard")
    text = hard_sentences(tables, parameters).data
    logs = innocents_by_log(tables[""])
    assert f"They rest on {len(logs)} logs" in text and "probability" not in text
    assert f"{logs.accused.sum()} of {logs.tested.sum()} tests of innocents" in text


# Verdicts


def test_the_worst_of_one_is_itself():
    x = np.random.default_rng(0).normal(size=8)
    assert tuple(worst(lambda level: [mean_interval(x, level)])) == tuple(mean_interval(x))


def test_the_end_that_speaks_against_a_claim_is_as_strict_as_there_are_sources():
    rng = np.random.default_rng(0)
    values = [rng.normal(size=8) for _ in range(6)]

    def at(level):
        return [mean_interval(x, level) for x in values]

    above, below = worst(at), worst(at, max)
    strict = at(1 - 0.05 / 6)
    assert above.low == min(r.low for r in at(0.95)) and above.high == min(r.high for r in strict)
    assert below.high == max(r.high for r in at(0.95)) and below.low == max(r.low for r in strict)


def test_six_sources_at_the_bar_are_called_not_reproduced_as_seldom_as_one():
    rng = np.random.default_rng(0)
    called = 0
    for _ in range(1500):
        values = rng.normal(size=(6, 10))
        found = worst(lambda level, values=values: [mean_interval(x, level) for x in values])
        called += verdict(found, 0.0) == "not reproduced"
    assert scipy.stats.binomtest(called, 1500, 0.025).pvalue > 0.001 and called < 60


def test_the_worst_of_what_cannot_be_had():
    assert (
        str(worst(lambda level: [Rate(np.nan, np.nan, np.nan, (), "not estimable")]))
        == "not estimable"
    )
    assert np.isnan(list(worst(lambda level: []))).all()


@pytest.mark.parametrize(
    "design, bar, above, can",
    [
        (Shares(14), 0.85, True, False),
        (Areas(((6, 8),)), 0.8, True, False),
        (Caught(6, 8), 0.7, True, False),
        (Shares(24), 0.85, True, True),
        (Areas(((12, 12),)), 0.8, True, True),
        (Caught(12, 12), 0.7, True, True),
        (Shares(80, 320), 0.95, True, True),
        (Shares(72), 0.05, False, True),
        (Shares(71), 0.05, False, False),
        (Means(6, (0.2,)), 0.6, True, True),
        (Means(6, (0.2,), size=True), 0.05, False, True),
        (F1(4, 16), 0.95, True, True),
        (F1(2, 2), 0.95, True, False),
    ],
)
def test_what_a_design_can_show(design, bar, above, can):
    assert attainable(design, bar, above) == can


def test_a_perfect_lab_of_six_and_eight_reaches_072():
    low = Areas(((6, 8),)).best(True).low
    assert low == pytest.approx(0.72, abs=0.005)
    z, half = scipy.stats.norm.ppf(0.975), 6
    spread = np.sqrt(
        low * (1 - low) / 48 * (1 + half * (1 - low) / (2 - low) + half * low / (1 + low))
    )
    assert 1 - low == pytest.approx(z * spread, abs=1e-8)


def test_chances_of_a_mean_are_noncentral_t():
    found = chances(Means(6, (0.16,)), 0.7, 0.6)
    away = (0.7 - 0.6) / (0.16 / np.sqrt(6))
    exact = scipy.stats.nct.sf(scipy.stats.t.ppf(0.975, 5), 5, away)
    assert found["reproduced"] == pytest.approx(exact, abs=0.04)
    assert sum(found.values()) == pytest.approx(1)


def test_chances_of_a_share_are_binomial():
    "Of 320 verdicts on 80 suspects all must be right: one error gives a lower end below .95."
    assert proportion_interval(319 / 320 * 80, 80)[0] < 0.95 < proportion_interval(80, 80)[0]
    found = chances(Shares(80, 320), 0.997, 0.95)
    assert found["reproduced"] == pytest.approx(0.997**320, abs=0.05)


def test_chances_for_every_source_multiply():
    one, six = (chances(Areas(((40, 40),), groups=g), 0.95, 0.8) for g in (1, 6))
    assert six["reproduced"] == pytest.approx(one["reproduced"] ** 6, abs=0.06)


def test_chances_of_auc_and_tpr_are_about_the_truth_that_was_asked_for():
    rng = np.random.default_rng(0)
    drawn = [Areas(((50, 50),)).draw(0.9, rng)[0] for _ in range(100)]
    assert np.mean(drawn) == pytest.approx(0.9, abs=0.01)
    caught = [
        Caught(99, 50, 0.1).rate(Caught(99, 50, 0.1).draw(0.7, rng)[0]).value for _ in range(40)
    ]
    assert np.mean(caught) == pytest.approx(0.7, abs=0.04)
    f1 = [F1(4, 16).rate(F1(4, 16).draw(0.9, rng)[0]).value for _ in range(60)]
    assert np.mean(f1) == pytest.approx(0.9, abs=0.02)


def test_an_unknown_spread_gives_no_chance_that_is_a_number():
    assert np.isnan(list(chances(Means(1, (float("nan"),)), 0.7, 0.6).values())).all()


@pytest.mark.parametrize(
    "ends, size",
    [
        ((-0.1, -0.3, 0.1), (0.1, 0, 0.3)),
        ((0.2, 0.1, 0.3), (0.2, 0.1, 0.3)),
        ((-0.2, -0.3, -0.1), (0.2, 0.1, 0.3)),
    ],
)
def test_the_size_of_a_difference(ends, size):
    assert tuple(folded(Rate(*ends))) == pytest.approx(size)


# The ledger


@pytest.mark.parametrize("found", [Rate(0.9, 0.85, 0.95), Rate(0.5, 0.4, 0.6)])
def test_what_cannot_be_compared_is_not_judged_well_or_badly(found):
    row = judge("x", "y", found, above=0.7, differs="another dose")
    assert (row.verdict, row.why) == ("not comparable", "another dose")


def test_what_had_no_chance_is_not_judged_whatever_came_out():
    for found in (Rate(0.5, 0.4, 0.6), Rate(1.0, 0.72, 1.0)):
        row = judge("x", "y", found, above=0.8, design=Areas(((6, 8),)), differs="another dose")
        assert row.verdict == "no chance here" and "0.72" in row.why
        assert (row.right, row.chance_yes) == (0.9, 0)


def test_an_able_design_is_judged_by_its_interval():
    design = Areas(((40, 40),))
    says = [
        judge("x", "y", r, above=0.8, design=design).verdict
        for r in (Rate(0.9, 0.85, 0.95), Rate(0.7, 0.6, 0.75), Rate(0.8, 0.7, 0.9))
    ]
    assert says == ["reproduced", "not reproduced", "open"]
    ours = judge("x", "y", Rate(0.9, 0.85, 0.95), above=0.8, whose="ours")
    assert ours.verdict == "holds" and np.isnan(ours.chance_yes)
    table = ledger([ours, untested("x", "y")])
    assert judged_at_all(table) == (1, 1) and "no chance here" in ledger_page(table)


def test_every_claim_has_a_verdict_a_reason_and_chances():
    claims = pd.read_csv(RESULTS / "claims/claims.csv")
    words = {"reproduced", "not reproduced", "holds", "does not hold", "open"}
    assert set(claims.verdict) <= words | {"no chance here", "not comparable"}
    assert claims.why.notna().all()
    measured = claims[claims.bar.notna()]
    assert measured[["chance_yes", "chance_no"]].notna().all(axis=None)
    assert (measured.chance_yes + measured.chance_no <= 1).all()


def test_table_1_had_no_chance_and_confs_doses_are_not_the_papers():
    claims = pd.read_csv(RESULTS / "claims/claims.csv")
    table1 = claims[claims["where"] == "Table 1"]
    assert (
        len(table1) == 9
        and set(table1.verdict) == {"no chance here"}
        and (table1.chance_yes == 0).all()
    )
    unfair = claims["where"].isin(
        ["Figure 6", "Figure 7", "Main result 1", "Main result 2", "Baselines", "Table 2"]
    )
    assert set(claims[unfair].verdict) == {"not comparable"}
    theirs = claims[claims.whose == "the paper's"]
    assert not (theirs.verdict == "not reproduced").any()


# Doses


def test_doses_are_counted_from_the_knobs():
    doses = generator_doses({"scale": "mini", "knobs": {}})
    assert doses.here.tolist() == [1000 * 16 / 150, 20, 8, 32]
    assert doses.paper.tolist() == [2, 1, 12, 512]
    assert looks({}, 300) == 32  # `finetune`'s own: 300 steps of 32
    steps = classifier_doses({"scale": "mini", "knobs": {}})
    assert steps.here.tolist() == [22 * 60 * 12 / 64, 22 * 40 * 12 / 64]


def test_a_dose_is_unlike_beyond_a_factor():
    doses = pd.DataFrame({"here": [3.0, 3.1, 0.33], "paper": 1.0}, ["near", "much", "little"])
    assert unlike(doses) == "much: 3, in the paper 1; little: 0, in the paper 1"
    assert unlike(doses, ["near"]) == "" and unlike(doses, factor=4) == ""


# History


def page_of(commit):
    "Rows of the claims that a commit's page showed: (where, claim) -> (here, verdict)."
    shown = subprocess.run(
        ["git", "show", f"{commit}:nbs/experiments/claims.ipynb"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if shown.returncode:
        pytest.skip("the history is not here")
    outputs = [o for c in json.loads(shown.stdout)["cells"] for o in c.get("outputs", [])]
    html = "".join("".join(o.get("data", {}).get("text/html", "")) for o in outputs)
    found = {}
    for row in re.findall(r"<tr.*?</tr>", html, re.S):
        cells = [
            unescape(re.sub("<.*?>", "", x)) for x in re.findall(r"<t[dh].*?</t[dh]>", row, re.S)
        ]
        if len(cells) > 5:
            found[cells[0], cells[1]] = cells[3], cells[6]
    return found


ON_PAGE = {
    "TrainProVe: accuracy": ("TrainProVe, CIFAR-10", "accuracy .997"),
    "TrainProVe: AUC": ("TrainProVe, CIFAR-10", "AUC .998"),
    "TrainProVe: innocents accused": ("TrainProVe, decision", "accuses at most 5% of the innocent"),
    "beats a coin": ("TrainProVe, baselines", "more accurate than a coin (.500 against .997)"),
    "beats always legal": ("TrainProVe, baselines", "more accurate than always answering legal"),
    "beats TrainProVe-Sim": (
        "TrainProVe, baselines",
        "more accurate than TrainProVe-Sim (worse than accuracy)",
    ),
    "origin test: innocents accused": ("Origin test", "accuses at most 5% of the innocent"),
    "origin test beats the attribution classifier": (
        "Origin test",
        "is more accurate than the attribution classifier",
    ),
    "origin test finds most": ("Origin test", "finds most of the guilty"),
}


@pytest.mark.parametrize("commit, told", [("1cf8672", EARLIER), ("1d427ad", LATER)])
def test_history_says_what_the_pages_said(commit, told):
    page = page_of(commit)
    for row, place in ON_PAGE.items():
        *ends, verdict_then = told[row]
        here, says = page[place]
        numbers = [float(x) for x in re.findall(r"-?\d+\.\d+", here)]
        assert numbers == pytest.approx(ends, abs=1e-9), row
        assert says == verdict_then, row


def test_history_lists_every_change_with_both_results():
    table = history_table()
    told = len(EARLIER) + len(origins_apart()) + sum(len(c.rows) for c in CHANGES)
    assert len(table) == told
    assert (table.before != "").all() and (table.after != "").all() and set(EARLIER) == set(LATER)


def test_the_run_with_origins_apart_is_told_as_its_table_has_it():
    _, tables, _ = shipped("fair_trainprove")
    whole = tables[""][tables[""].kind == "whole"]
    told = origins_apart()
    for method, rows in whole.groupby("method"):
        names = {"TrainProVe": "TrainProVe: power", "origin test (ours)": "origin test finds most"}
        if method in names:
            assert told[names[method]][0] == pytest.approx(rows.accused[rows.guilty].mean())
    paper = whole[whole.method == "TrainProVe"]
    right = (paper.accused == paper.guilty).mean()
    assert told["TrainProVe: accuracy"][0] == pytest.approx(right)
    assert told["beats a coin"][0] == pytest.approx(right)


# A lead


def test_a_lead_says_what_mixtures_and_unknown_origins_do_to_it():
    parameters, tables, _ = shipped("trainprove")
    ours = tables[""][tables[""].method == "origin test (ours)"]
    mixed = ours[(ours.kind != "whole") & ~ours.guilty]
    text = lead_not_proof(tables[""], parameters["alpha"])
    for kind, rows in mixed.groupby("kind"):
        assert f"{kind} {(rows.p_own <= 0.05).mean():.2f}" in text
    whole = ours[(ours.kind == "whole") & ~ours.guilty]
    assert f"{(whole.p_unknown <= 0.05).mean():.2f}" in text


# What is promised, and what is kept


@pytest.mark.parametrize(
    "checks, n, runs, kept",
    [
        (coverage.mean_checks, 0, 1000, "yes"),
        (coverage.mean_checks, 2, 600, "no"),
        (coverage.auc_checks, 1, 80, "yes"),
        (coverage.auc_checks, 2, 200, "no"),
        (coverage.threshold_checks, 0, 150, "yes"),
        (coverage.index_checks, 1, 600, "no"),
        (coverage.log_checks, 3, 600, "yes"),
        (coverage.log_checks, 4, 2000, "no"),
    ],
)
def test_coverage_says_which_promises_are_kept(checks, n, runs, kept):
    check = checks()[n]
    row = coverage.coverage_table([coverage.Check(**{**vars(check), "runs": runs})]).iloc[0]
    assert row.kept == kept, row


def test_a_check_counts_cases():
    check = coverage.Check("x", 0.05, "y", "z", lambda rng: rng.random() < 0.2, 2000)
    row = coverage.coverage_table([check]).iloc[0]
    assert row.measured == check.measured() == pytest.approx(0.2, abs=0.03) and row.kept == "no"
    assert row["±"] == pytest.approx(2 * np.sqrt(row.measured * (1 - row.measured) / 2000))


def test_the_page_of_coverage_holds_what_was_measured():
    "Of the rows that its page shows, those of the lab are the shipped ones."
    cells = json.loads((NBS / "evidence/coverage.ipynb").read_text())["cells"]
    pages = [
        "".join(o["data"]["text/html"])
        for c in cells
        for o in c.get("outputs", [])
        if "text/html" in o.get("data", {})
    ]
    unknown = shipped("trainprove")[2]["unknown"]["false accusations"][0]
    assert f"{unknown:.3f}" in pages[-1] and "kept" in io.StringIO(pages[-1]).read()
