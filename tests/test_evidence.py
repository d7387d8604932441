"Rates, intervals and tests, against references written here and cases worked out by hand."

import itertools
from functools import partial

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from helpers import refused

from trainprove_nb.evidence import rates as evidence
from trainprove_nb.evidence.log_test import log_test, log_tests, shuffled_labels
from trainprove_nb.evidence.release import release_test

# Rates


def scores(seed, m, n):
    "Scores of m innocents and n infringers, with ties."
    rng = np.random.default_rng(seed)
    return rng.normal(0, 1, m).round(1), rng.normal(0.8, 1, n).round(1)


@pytest.mark.parametrize("m, n", [(1, 1), (2, 5), (12, 9), (60, 60)])
def test_auc_counts_pairs(m, n):
    a, b = scores(m, m, n)
    wins = sum((y > x) + (y == x) / 2 for x in a for y in b)
    assert evidence.auc(a, b).value == pytest.approx(wins / (m * n))


@pytest.mark.parametrize("level", [0.9, 0.95])
@pytest.mark.parametrize("m, n", [(2, 5), (4, 4), (12, 9), (60, 60)])
def test_auc_bounds_solve_newcombes_equation(m, n, level):
    rate, z = evidence.auc(*scores(m, m, n), level), scipy.stats.norm.ppf((1 + level) / 2)
    half = (m + n) / 2 - 1
    assert 0 < rate.value < 1 and rate.low < rate.value < rate.high and rate.n == (m, n)
    for t in (rate.low, rate.high):
        spread = np.sqrt(
            t * (1 - t) / (m * n) * (1 + half * (1 - t) / (2 - t) + half * t / (1 + t))
        )
        assert abs(rate.value - t) == pytest.approx(z * spread, abs=1e-8)


def test_auc_of_perfect_separation_still_has_an_interval():
    few, many = (evidence.auc(np.zeros(n), np.ones(n)) for n in (4, 40))
    assert few.value == few.high == many.high == 1 and 0.3 < few.low < 0.8 < many.low < 1
    t, z = few.low, scipy.stats.norm.ppf(0.975)
    assert 1 - t == pytest.approx(
        z * np.sqrt(t * (1 - t) / 16 * (1 + 3 * (1 - t) / (2 - t) + 3 * t / (1 + t))), abs=1e-8
    )


def test_auc_of_swapped_classes_is_its_mirror_image():
    a, b = scores(3, 8, 5)
    one, other = evidence.auc(a, b), evidence.auc(b, a)
    assert [one.value, one.low, one.high] == pytest.approx(
        [1 - other.value, 1 - other.high, 1 - other.low], abs=1e-8
    )
    assert evidence.auc([1, 1], [0, 0]).low == 0


def test_auc_within_compares_models_of_one_source_only():
    "Two sources at different levels: pooled they overlap, within each all are told apart."
    innocent = pd.DataFrame(dict(source=["a"] * 3 + ["b"] * 3, score=[0.0, 0.1, 0.2, 5, 5.1, 5.2]))
    guilty = pd.DataFrame(dict(source=["a"] * 3 + ["b"] * 3, score=[1.0, 1.1, 1.2, 6, 6.1, 6.2]))
    assert (
        evidence.auc(innocent.score, guilty.score).value == 0.75
        and evidence.auc_within(innocent, guilty, "score").value == 1
    )
    one = innocent[innocent.source == "a"], guilty[guilty.source == "a"]
    assert evidence.auc_within(*one, "score") == evidence.auc(one[0].score, one[1].score)
    both = evidence.auc_within(innocent, guilty, "score")
    single = evidence.auc(one[0].score, one[1].score)
    assert both.low > single.low and both.n == (6, 6)
    with pytest.raises(ValueError, match="0 innocent"):
        evidence.auc_within(innocent.assign(source="c"), guilty, "score")


@pytest.mark.parametrize("fpr", [0.25, 1 / 3, 0.5, 1])
@pytest.mark.parametrize("seed", range(6))
def test_tpr_at_fpr_is_the_best_of_all_thresholds(seed, fpr):
    a, b = scores(seed, 3 + 4 * seed, 10)
    caught = max(
        int((b >= t).sum())
        for t in [*a, *b, np.inf]
        if (a >= t).sum() + 1 <= fpr * (len(a) + 1) + 1e-9 or fpr == 1
    )
    rate = evidence.tpr_at_fpr(a, b, fpr)
    assert rate.value == caught / 10
    low, high = scipy.stats.binomtest(caught, 10).proportion_ci(method="exact")
    assert rate.low <= low + 1e-9 and rate.high >= high - 1e-9
    # no threshold to be uncertain of
    assert fpr < 1 or (rate.low, rate.high) == pytest.approx((low, high))


def test_tpr_interval_knows_that_few_innocents_set_the_threshold():
    "Five innocents or five thousand of one kind: the same TPR, but not as well known."
    rng = np.random.default_rng(0)
    b = rng.normal(2, 1, 400)
    few, many = (
        evidence.tpr_at_fpr(scipy.stats.norm.ppf(np.linspace(0.5 / n, 1 - 0.5 / n, n)), b, 0.2)
        for n in (5, 5000)
    )
    exact = scipy.stats.binomtest(round(many.value * 400), 400).proportion_ci(method="exact")
    assert many.high - many.low < 1.3 * (exact.high - exact.low) and few.high - few.low > 2 * (
        many.high - many.low
    )


def test_tpr_interval_covers_where_innocents_are_few():
    "Innocents N(0, 1), infringers N(2, 1): at 10% the true rate is .76; of 36 innocents it is read off three."
    rng, true = np.random.default_rng(0), scipy.stats.norm.sf(scipy.stats.norm.isf(0.1) - 2)
    found = [evidence.tpr_at_fpr(rng.normal(size=36), rng.normal(2, 1, 48), 0.1) for _ in range(60)]
    assert np.mean([r.low <= true <= r.high for r in found]) >= 0.95


def test_tpr_at_fpr_keeps_thresholds_on_a_straight_stretch_of_the_curve():
    assert [
        evidence.tpr_at_fpr([1, 2, 3, 4], [1, 2, 3, 4], fpr).value for fpr in (0.2, 0.4, 0.6, 0.8)
    ] == [0, 0.25, 0.5, 0.75]


def test_scores_of_one_class_only():
    for score in (evidence.auc, evidence.tpr_at_fpr):
        refused(partial(score, [], [0.1, 0.2]), "0 innocent and 2 infringing", "at least one")


@pytest.mark.parametrize("fpr", [-0.1, 1.5])
def test_tpr_at_an_impossible_rate(fpr):
    refused(lambda: evidence.tpr_at_fpr([0.1], [0.2], fpr), f"fpr = {fpr}", "0 .* 1")


# Means, and one more model


@pytest.mark.parametrize("level", [0.8, 0.95])
@pytest.mark.parametrize("n", [2, 3, 30])
def test_mean_interval_is_students(n, level):
    values = np.random.default_rng(n).random(n)
    mean, low, high = evidence.mean_interval(values, level)
    assert mean == pytest.approx(values.mean())
    assert (low, high) == pytest.approx(
        scipy.stats.t.interval(level, n - 1, values.mean(), scipy.stats.sem(values))
    )


def test_mean_of_one_value_has_no_interval():
    mean, low, high = evidence.mean_interval([0.3])
    assert mean == 0.3 and np.isnan(low) and np.isnan(high)


def test_one_more_of_independent_models_is_students_t():
    x = np.array([0.3, 0.31, 0.35, 0.28, 0.33])
    for value in (0.2, 0.3, 0.4):
        alone = scipy.stats.ttest_ind([value], x, alternative="less")
        assert evidence.resemblance_index(value, x) == pytest.approx(alone.pvalue)
    with pytest.raises(ValueError, match="1 models that share 0.0"):
        evidence.resemblance_index(0.2, [0.3])
    with pytest.raises(ValueError, match="share 1"):
        evidence.resemblance_index(0.2, x, 1)


def test_a_stranger_to_models_of_one_pool_is_accused_as_often_as_allowed():
    rng, called = np.random.default_rng(0), np.zeros(2)
    for _ in range(4000):
        # a third of the variance in common
        known, stranger = (
            rng.normal(size=5) * (2 / 3) ** 0.5 + rng.normal() / 3**0.5,
            rng.normal(),
        )
        called += [evidence.resemblance_index(stranger, known, c) <= 0.05 for c in (0, 1 / 3)]
    naive, ours = called / 4000
    assert ours < 0.062 < naive


# The release test


@pytest.mark.parametrize("n", [5, 8, 12])
def test_release_test_is_the_exact_sign_flip(n):
    a, b = np.random.default_rng(n).normal(size=(2, n))
    flips = (np.array(np.meshgrid(*[[1, -1]] * n)).reshape(n, -1).T * (b - a)).mean(1)
    advantage, p = release_test(a, b)
    assert advantage == pytest.approx((b - a).mean()) and p == pytest.approx(
        (flips >= (b - a).mean() - 1e-12).mean()
    )


def test_release_test_keeps_its_false_positive_rate():
    "600 innocents: the share at or below .05 lies where a binomial with that rate would, 999 times of 1,000."
    rng = np.random.default_rng(0)
    ps = [release_test(*rng.gamma(2, size=(2, 15)), resamples=199, seed=k)[1] for k in range(600)]
    assert np.mean(np.array(ps) <= 0.05) <= scipy.stats.binom.isf(0.001, 600, 0.05) / 600


def test_release_test_finds_an_advantage():
    rng = np.random.default_rng(0)
    a = rng.normal(size=40)
    assert (
        release_test(a, a + 0.3 + 0.1 * rng.normal(size=40))[1]
        < 0.001
        < 0.9
        < release_test(a + 0.3, a)[1]
    )


def test_release_test_of_too_little():
    refused(lambda: release_test([1, 2, 3, 4], [1, 2, 3, 4]), "4 prompts", "at least 5")
    refused(lambda: release_test([1] * 6, [1] * 7), r"released \(6,\) and withheld \(7,\)")


@pytest.mark.parametrize(
    "released, withheld, says",
    [
        ([0.1, 0.2, np.nan, 0.4, 0.5], [0] * 5, "not a finite"),
        (np.zeros((2, 6)), np.zeros((3, 6)), r"\(2, 6\) and withheld \(3, 6\)"),
    ],
)
def test_release_test_of_distances_that_are_none(released, withheld, says):
    refused(lambda: release_test(released, withheld), says, "leave|give")


# a whole log


def every_labelling(scores, released, block):
    "The statistic under each way to label, block by block, written out."
    deviations = scores - np.array([scores[block == b].mean() for b in block])
    sums = [0.0]
    for b in np.unique(block):
        places = np.flatnonzero(block == b)
        ways = itertools.combinations(places, int(released[places].sum()))
        chosen = [deviations[list(way)].sum() for way in ways]
        sums = [a + c for a in sums for c in chosen]
    return np.array(sums), deviations[released].sum()


@pytest.mark.parametrize("seed", range(3))
def test_log_test_agrees_with_every_labelling(seed):
    rng = np.random.default_rng(seed)
    block = np.repeat([0, 1, 2, 3], [3, 4, 2, 5])
    released = np.isin(np.arange(14), [0, 3, 4, 7, 9, 10])
    scores = rng.normal(size=14)
    sums, observed = every_labelling(scores, released, block)
    exact = np.mean(sums >= observed - 1e-9)
    assert log_test(scores, released, block, draws=19_999, seed=seed).p == pytest.approx(
        exact, abs=0.012
    )


def test_scores_that_share_their_shuffles_say_what_each_says_alone():
    rng = np.random.default_rng(3)
    block, released = np.repeat(np.arange(20), 3), np.tile([True, False, False], 20)
    scores = {name: rng.normal(size=60) + k * released for k, name in enumerate("abc")}
    found = log_tests(scores, released, block, draws=499, seed=5)
    for name, score in scores.items():
        alone = log_test(score, released, block, draws=499, seed=5)
        assert (found[name].p, found[name].z) == pytest.approx((alone.p, alone.z))
        assert found[name].each == pytest.approx(alone.each)
    assert log_tests({}, released, block) == {}
    scores["b"][7] = np.inf
    refused(lambda: log_tests(scores, released, block), "not a finite number")


def test_log_test_holds_its_level_where_prompts_differ():
    "Easy prompts were asked more often: a comparison of all with all accuses nearly everybody."
    pvalues = []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        ease = rng.normal(size=30)
        released = 1 + rng.poisson(np.exp(ease))
        block = np.concatenate([np.repeat(np.arange(30), released), np.repeat(np.arange(30), 3)])
        label = np.arange(len(block)) < released.sum()
        scores = np.stack([ease[block] + rng.normal(size=len(block)) for _ in range(3)])
        pvalues.append(log_test(scores, label, block, draws=99, seed=seed).p)
    for level in (0.05, 0.2):
        accused = int(np.sum(np.array(pvalues) <= level))
        assert scipy.stats.binomtest(accused, 400, level).pvalue > 0.001


def test_log_test_shuffles_as_many_as_were_released():
    block = np.array([2, 0, 0, 1, 1, 2, 2, 0])
    released = np.array([1, 1, 0, 0, 1, 0, 1, 0], bool)
    drawn = shuffled_labels(released, block, 3000, np.random.default_rng(0))
    for b in range(3):
        assert (drawn[:, block == b].sum(1) == released[block == b].sum()).all()
    assert np.allclose(drawn[:, block == 0].mean(0), 1 / 3, atol=0.04)  # each as often as another


def test_log_test_does_not_mind_order_names_or_what_a_prompt_has_in_common():
    rng = np.random.default_rng(0)
    prompts = np.array([f"a {n} fox" for n in rng.integers(0, 12, 80)])
    released = rng.random(80) < 0.4
    both = {p for p in prompts if 0 < released[prompts == p].sum() < (prompts == p).sum()}
    kept = np.isin(prompts, list(both))
    prompts, released = prompts[kept], released[kept]
    scores = rng.normal(size=len(prompts)) + 0.5 * released
    found = log_test(scores, released, prompts)
    ease = {p: 100 * k for k, p in enumerate(sorted(both))}
    assert log_test(scores + [ease[p] for p in prompts], released, prompts).p == pytest.approx(
        found.p
    )
    order = rng.permutation(len(prompts))
    assert log_test(scores[order], released[order], prompts[order]).z == pytest.approx(
        found.z, abs=0.05
    )
    several = log_test([scores, rng.normal(size=len(prompts))], released, prompts)
    assert several.each[0] == pytest.approx(found.z, abs=0.01) and several.z == max(several.each)
    assert several.p >= found.p


@pytest.mark.parametrize(
    "scores, released, prompts, says",
    [
        ([1.0, 2.0, 3.0], [True, True, False], ["a", "b", "b"], "1 prompts have only released"),
        ([1.0, np.nan], [True, False], ["a", "a"], "not a finite number"),
        ([1.0, 2.0], [True, False, True], ["a", "a"], "give one of each for every picture"),
    ],
)
def test_log_test_refuses(scores, released, prompts, says):
    with pytest.raises(ValueError, match=says):
        log_test(scores, released, prompts)
