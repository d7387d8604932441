"How much, betting, accounts: against every case counted out, hand computation, and simulations."

import itertools
from functools import partial

import numpy as np
import pytest
import scipy.stats
from helpers import refused

from trainprove_nb.evidence.accounts import (
    _spreads,
    account_test,
    accused_accounts,
    any_account,
    can_be_told_apart,
    e_bh,
    holm,
)
from trainprove_nb.evidence.betting import Bets, in_secret_order, payoff, wealth_path
from trainprove_nb.evidence.how_much import (
    DEPTHS,
    data_share,
    learnt_share,
    least_learnt,
    places,
    released_effect,
)
from trainprove_nb.evidence.log_test import centred, shuffled_labels


def at_most(count, trials, chance):
    "Whether so many successes are no wonder (999 of 1,000) where each has at most this chance."
    return count <= scipy.stats.binom.isf(0.001, trials, chance)


def even_log(prompts, withheld):
    "Labels and prompts, one released picture each, the first."
    size = 1 + withheld
    return np.tile(np.arange(size) == 0, prompts), np.repeat(np.arange(prompts), size)


# Places


def test_the_place_of_an_only_released_picture_is_its_rank():
    rng = np.random.default_rng(0)
    label, block = even_log(50, 4)
    scores = rng.normal(size=250)
    names = np.array([f"p{b:02}" for b in block])
    table = scores.reshape(50, 5)
    better = (table[:, 1:] > table[:, :1]).sum(1)
    for seed in range(3):
        place = places(scores, label, names, seed)
        assert ((better / 5 <= place) & (place < (better + 1) / 5)).all()


@pytest.mark.parametrize("scores", [[1, 2, 3, 4, 5], [1, 1, 1, 2, 2], [0, 0, 0, 0, 0]])
@pytest.mark.parametrize("given", [1, 2, 4])
def test_places_are_uniform_over_all_labellings(scores, given):
    "Every way to release `given` of five pictures, each equally often; ties or none."
    ways = list(itertools.combinations(range(5), given))
    label = np.concatenate([np.isin(np.arange(5), w) for w in ways] * 150)
    block = np.repeat(np.arange(len(label) // 5), 5)
    place = places(np.tile(scores, len(ways) * 150), label, block, seed=1)
    assert scipy.stats.kstest(place, "uniform").pvalue > 0.001


def test_places_do_not_draw_by_score():
    "Of two released pictures, the better and the worse are drawn equally often."
    block = np.repeat(np.arange(4000), 3)
    place = places(np.tile([9, 0, 5], 4000), np.tile([True, True, False], 4000), block)
    assert abs(np.mean(place < 0.5) - 0.5) < 0.03


# The share of the log


def chance_of(hits, learnt, others, depth):
    "Chance that learnt sure hits and these others make so many hits, counted out."
    total = 0.0
    for outcome in itertools.product([0, 1], repeat=others):
        if learnt + sum(outcome) >= hits:
            total += np.prod([depth if x else 1 - depth for x in outcome])
    return total


@pytest.mark.parametrize("chosen", [True, False])
@pytest.mark.parametrize("depth", [0.1, 0.5])
def test_least_learnt_counts_out_every_outcome(depth, chosen):
    for hits in range(9):
        enough = [k for k in range(9) if chance_of(hits, k, 8 if chosen else 8 - k, depth) > 0.05]
        assert least_learnt(hits, 8, depth, 0.05, chosen) == enough[0]


def test_learnt_share_joins_the_depths():
    rng = np.random.default_rng(0)
    label, block = even_log(100, 9)
    scores = rng.normal(size=1000) + 3 * (label & (block < 60))
    found = learnt_share(scores, label, block, level=0.9)
    place = places(scores, label, block)
    assert found.hits == tuple(int((place <= d).sum()) for d in DEPTHS)
    bounds = [least_learnt(h, 100, d, 0.1 / 4) for h, d in zip(found.hits, DEPTHS, strict=True)]
    assert found.at_least == max(bounds) == round(100 * found.low) > 30
    assert (found.prompts, found.level, found.chosen) == (100, 0.9, True)
    assert learnt_share(scores, label, block, level=0.999).low < found.low
    looser = learnt_share(scores, label, block, level=0.9, chosen=False)
    assert found.low < looser.low <= 0.6
    assert "at least" in found._repr_markdown_() and "chose" not in found._repr_markdown_()
    assert "if nobody chose" in looser._repr_markdown_()


def bounds(share, effect, chosen, pick, runs=150):
    "Bounds for suspects that learnt the share; `pick`: what their model knew least."
    label, block = even_log(100, 4)
    low = []
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        scores = rng.normal(size=(100, 5))
        if pick:
            scores = scores[np.argsort(scores[:, 0])]
        scores[: round(100 * share), 0] += effect
        low.append(learnt_share(scores.ravel(), label, block, chosen=chosen, seed=seed).low)
    return np.array(low)


@pytest.mark.parametrize("share", [0, 0.1, 0.5])
@pytest.mark.parametrize("effect", [2, 50])
@pytest.mark.parametrize("chosen, pick", [(True, False), (True, True), (False, False)])
def test_bounds_of_the_learnt_share_hold(share, effect, chosen, pick):
    low = bounds(share, effect, chosen, pick)
    assert at_most(int((low > share + 1e-9).sum()), len(low), 0.05)


def test_bounds_are_worth_something_and_strong_memory_is_counted():
    assert bounds(1, 50, True, False, 20).min() > 0.6
    # all hit: three of them by chance are no rare event (1/4 ** 3 > .05 / 4), four would be
    assert (bounds(1, 50, False, False, 20) == 0.97).all()
    assert bounds(0.5, 50, False, False, 40).mean() > 0.38


def test_choice_by_looks_breaks_the_bound_that_forbids_it():
    "Why `chosen` is the default."
    assert np.mean(bounds(0.5, 2, False, True, 40) > 0.5) > 0.8


# The share of the suspect's data


def test_released_effect_is_the_lead_in_pooled_spreads():
    rng = np.random.default_rng(0)
    label, block = even_log(30, 3)
    scores = rng.normal(size=120) + label
    table = scores.reshape(30, 4)
    lead = np.mean(table[:, 0] - table[:, 1:].mean(1))
    pooled = np.sqrt(np.mean(table.var(1, ddof=1)))
    assert released_effect(scores, label, block) == pytest.approx(lead / pooled)
    moved = 7 * (scores + 100 * block)
    assert released_effect(moved, label, block) == pytest.approx(lead / pooled)
    assert released_effect(block.astype(float), label, block) == 0


def test_data_share_reads_between_the_shadows():
    rhos = np.linspace(0, 1, 11)
    found = data_share(0.5, 2 * rhos, rhos)
    assert found.value == pytest.approx(0.25) and found.shadows == 11 and not found.beyond
    assert "estimate" in found._repr_markdown_() and "only if" in found._repr_markdown_()
    assert not data_share(1.9, 2 * rhos, rhos).beyond
    beyond = data_share(9, 2 * rhos, rhos)
    assert beyond.beyond and beyond.value == 1 and "No shadow" in beyond._repr_markdown_()
    assert data_share(-1, 2 * rhos, rhos).value == 0


def test_data_share_pools_shadows_that_are_out_of_order():
    "Effects 1 and 2 belong to .6 and .4: both are made 1.5, half-way between."
    rhos, effects = np.repeat([0.0, 0.6, 0.4, 1.0], 3), np.repeat([0.0, 1, 2, 3], 3)
    read = [data_share(e, effects, rhos).value for e in (0.75, 1.5, 2.25)]
    assert read == pytest.approx([0.25, 0.5, 0.75])
    assert data_share(7, np.zeros(12), rhos).value == pytest.approx(0.5)  # nothing to read off


def test_the_interval_is_the_jackknife_plus():
    "On a straight line without noise, nine shadows: by hand, the k-th of the errors of leaving out."
    rhos = np.linspace(0.1, 0.9, 9)
    found = data_share(0.5, rhos, rhos, level=0.8)  # the eighth smallest of nine
    errors = np.r_[0.1, np.zeros(7), 0.1]  # the ends are read off as their neighbours
    assert found.low == pytest.approx(0.5 - np.sort(errors)[7])
    assert found.high == pytest.approx(0.5 + np.sort(errors)[7])


def simulated(rng, rho, memory=1.0):
    "Effect of a model that learnt the share rho of 200 prompts."
    label, block = even_log(200, 3)
    scores = rng.normal(size=(200, 4))
    scores[:, 0] += memory * (rng.random(200) < rho)
    return released_effect(scores.ravel(), label, block)


def test_data_share_covers_suspects_like_the_shadows_and_no_others():
    rng = np.random.default_rng(0)
    covered, lean = [], {0.5: [], 2.0: []}
    for _ in range(60):
        rhos = np.tile([0, 0.25, 0.5, 0.75, 1], 4)
        effects = [simulated(rng, rho) for rho in rhos]
        truth = rng.random()
        found = data_share(simulated(rng, truth), effects, rhos)
        covered.append(found.low <= truth <= found.high)
        if len(covered) <= 12:
            for memory, off in lean.items():
                off.append(data_share(simulated(rng, 0.5, memory), effects, rhos).value - 0.5)
    assert at_most(60 - sum(covered), 60, 0.1)
    assert np.mean(lean[0.5]) < -0.15 and np.mean(lean[2.0]) > 0.15


# What is refused


LOG = ([1.0, 2.0], [True, False], ["a", "a"])
LINE = (np.linspace(0, 2, 12), np.linspace(0, 1, 12))


@pytest.mark.parametrize("judge", [places, learnt_share, released_effect])
def test_logs_that_cannot_be_judged(judge):
    refused(lambda: judge([1.0, 2.0], [True, True], ["a", "a"]), "only released or only withheld")
    refused(lambda: judge([1.0, np.nan], *LOG[1:]), "not a finite number")
    refused(lambda: judge([1.0], *LOG[1:]), "one of each for every picture")
    refused(lambda: judge([], [], []), "no pictures", "at least one")


@pytest.mark.parametrize("level", [0, 1, 95, np.nan])
def test_a_level_that_is_none(level):
    refused(lambda: learnt_share(*LOG, level=level), f"level = {level}", "between 0 and 1")
    refused(lambda: data_share(0.1, *LINE, level=level), f"level = {level}", "between 0 and 1")


def test_hits_that_are_none():
    refused(lambda: least_learnt(9, 8, 0.5), "9 hits of 8 prompts")
    refused(lambda: least_learnt(-1, 8, 0.5), "-1 hits")
    refused(lambda: least_learnt(0, 0, 0.5), "0 hits of 0 prompts")
    refused(lambda: least_learnt(3, 8, 1.0), r"depth = 1\.0", "between 0 and 1")
    refused(lambda: least_learnt(3, 8, 0.5, 0), "alpha = 0")


def test_shadows_that_are_too_few_or_wrong():
    effects, rhos = LINE
    refused(lambda: data_share(0.1, effects[:5], rhos), r"\(5,\) effects and \(12,\) rhos")
    refused(lambda: data_share(0.1, effects[:8], rhos[:8]), "8 shadows: level 0.9 needs 9")
    refused(lambda: data_share(0.1, *LINE, level=0.95), "12 shadows: level 0.95 needs 19")
    refused(lambda: data_share(0.1, effects, 100 * rhos), "rho = 9.09", "share from 0 to 1")
    refused(lambda: data_share(0.1, effects, [*rhos[:11], np.nan]), "rho = nan")
    refused(lambda: data_share(0.1, effects, 0 * rhos), "all shadows have rho = 0", "at least two")
    refused(lambda: data_share(np.nan, *LINE), "not a finite number")
    assert data_share(0.1, effects[:9], rhos[:9]).shadows == 9


# Betting


@pytest.mark.parametrize("scores", [[1, 2, 3, 4, 5], [1, 1, 2, 2, 2], [0, 0, 0, 0, 0]])
@pytest.mark.parametrize("given", [1, 2, 3, 4])
def test_a_bet_is_fair_over_all_labellings(scores, given):
    "The mean over every way to label is 0, and none pays more than 1, or loses more."
    ways = itertools.combinations(range(5), given)
    paid = [payoff(scores, np.isin(np.arange(5), way)) for way in ways]
    assert np.mean(paid) == pytest.approx(0, abs=1e-12) and max(map(abs, paid)) <= 1
    if len(set(scores)) == 5:
        assert max(paid) == 1 and min(paid) == -1


def test_what_a_bet_pays_by_hand():
    assert payoff([5, 1, 3], [True, False, False]) == 1
    assert payoff([3, 1, 5], [True, False, False]) == 0
    assert payoff([3, 3, 5], [True, False, False]) == -0.5
    assert payoff([4, 5, 1, 2], [True, True, False, False]) == 1
    assert payoff([4, 1, 5, 2], [True, True, False, False]) == -0.5


def test_wealth_is_the_mean_of_parts_that_never_mix():
    paid, parts, path = [0.5, -1, 1, 0.25], [1.0, 1.0], []
    for x in paid:
        parts = [w * (1 + f * x) for w, f in zip(parts, (0.3, 0.6), strict=True)]
        path.append(sum(parts) / 2)
    assert wealth_path(paid, (0.3, 0.6)) == pytest.approx(path)
    assert wealth_path([paid, paid], (0.3, 0.6))[1] == pytest.approx(path)
    bets = Bets()
    for released in (2, 0, 1):  # best, worst, in the middle of three
        bets.bet([0, 1, 2], np.arange(3) == released)
    assert bets.payoffs == [1, -1, 0]
    assert bets.path == pytest.approx([1, *wealth_path([1, -1, 0])])
    assert bets.wealth == bets.path[-1] < 1 and bets.p == pytest.approx(1 / 1.5)


def test_innocents_are_accused_at_most_as_often_as_allowed_at_any_look():
    "1,500 innocents, looked at after each of 200 prompts; unequal blocks, ties, two released."
    rng, values = np.random.default_rng(0), np.array([0, 0, 1, 2, 2, 5.0])
    shuffles = np.argsort(rng.random((400, 6)))  # the first 1, 2 or 3 are released
    labels = [[np.isin(np.arange(6), order[:given]) for order in shuffles] for given in (1, 2, 3)]
    kinds = np.array([[payoff(values, label) for label in some] for some in labels])
    paid = kinds[rng.integers(0, 3, (1500, 200)), rng.integers(0, 400, (1500, 200))]
    highest = wealth_path(paid).max(1)
    for alpha in (0.05, 0.2):
        assert at_most(int((highest >= 1 / alpha).sum()), 1500, alpha)
    assert (highest >= 5).mean() > 0.05  # and the promise is not kept by never betting


def test_infringers_are_accused_and_the_book_says_so():
    rng, bets = np.random.default_rng(0), Bets(budget=100)
    assert (bets.wealth, bets.p, bets.stopped, bets.hopeless) == (1, 1, False, False)
    while not bets.stopped:
        bets.bet(rng.normal(size=5) + [1, 0, 0, 0, 0], [True] + [False] * 4)
    assert 5 < len(bets.payoffs) < 40 and bets.p <= 0.05 and not bets.hopeless
    assert bets.path[:-1].max() < 20 <= bets.wealth and "accused" in bets._repr_markdown_()
    lost = bets.bet([0, 1], [True, False])
    assert lost.stopped and lost.p <= 0.05 and lost.wealth < lost.path[-2]  # p stays, wealth sinks


def test_futility_is_told_at_the_first_prompt_after_which_nothing_helps():
    budget, won, lost = 12, ([0, 1], [False, True]), ([0, 1], [True, False])
    bets = Bets(budget=budget)
    while not bets.hopeless:
        assert not bets.stopped
        bets.bet(*lost)
        best = Bets(payoffs=[*bets.payoffs])
        for _ in range(budget - len(bets.payoffs)):
            best.bet(*won)
        assert bets.hopeless == (not best.stopped)
    assert 1 <= len(bets.payoffs) < budget and "given up" in bets._repr_markdown_()
    assert not Bets(payoffs=bets.payoffs).hopeless  # without a budget one may always go on
    # six bets won give (1.2^6 + 1.5^6 + 1.8^6)/3 = 16.1, seven 27.3
    assert Bets(budget=6).hopeless and not Bets(budget=7).hopeless


def test_the_secret_order_deals_every_picture_once():
    prompts = ["b", "a", "b", "c", "a", "b"]
    orders = [in_secret_order(prompts, seed) for seed in range(20)]
    for order in orders:
        assert sorted(np.concatenate(order)) == list(range(6))
        assert [len({prompts[i] for i in pictures}) for pictures in order] == [1, 1, 1]
    firsts = {prompts[order[0][0]] for order in orders}
    assert firsts == {"a", "b", "c"}
    again = in_secret_order(prompts, 3)
    assert all((a == b).all() for a, b in zip(orders[3], again, strict=True))


def test_bets_that_are_refused():
    refused(lambda: payoff([1, 2], [True, True]), "only released or only withheld")
    refused(lambda: payoff([1, np.inf], [True, False]), "not a finite number")
    refused(lambda: payoff([1, 2, 3], [True, False]), "one of each")
    refused(lambda: payoff([], []), "without pictures")
    refused(lambda: wealth_path([0.1, 1.5]), "between -1 and 1")
    refused(lambda: wealth_path([np.nan]), "between -1 and 1")
    for fractions in ((), (1.0,), (0.5, 0)):
        refused(partial(wealth_path, [0.1], fractions), "between 0 and 1")
    for alpha in (0, 1, -0.1):
        refused(partial(Bets, alpha=alpha), f"alpha = {alpha}")
    refused(lambda: Bets(budget=0), "budget = 0")
    spent = Bets(budget=1).bet([1, 2], [True, False])
    refused(lambda: spent.bet([1, 2], [True, False]), "budget of 1 prompts is spent")
    assert len(spent.payoffs) == 1


# Accounts


def closed_testing(p):
    "Adjusted p-values by testing every group of accounts that each is in, with Bonferroni."
    n = len(p)
    groups = [g for k in range(1, n + 1) for g in itertools.combinations(range(n), k)]
    tests = {g: min(1, len(g) * min(p[i] for i in g)) for g in groups}
    return [max(t for g, t in tests.items() if i in g) for i in range(n)]


@pytest.mark.parametrize("seed", range(5))
def test_holm_is_closed_testing(seed):
    p = np.random.default_rng(seed).beta(0.3, 2, 6).round(3)
    assert holm(p) == pytest.approx(closed_testing(p))


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.7]) == pytest.approx([0.7]) and holm([0.6, 0.7]) == pytest.approx([1, 1])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.3])
def test_e_bh_accuses_as_its_definition_says(seed, alpha):
    e = np.exp(np.random.default_rng(seed).normal(1, 3, 9))
    largest = np.sort(e)[::-1]
    enough = [k for k in range(1, 10) if k * largest[k - 1] / 9 >= 1 / alpha]
    accused = e >= largest[max(enough) - 1] if enough else np.zeros(9, bool)
    assert ((e_bh(e) <= alpha) == accused).all()


def test_the_table_of_accounts():
    table = accused_accounts({"ann": 0.2, "bob": 0.001, "cem": 0.02})
    assert list(table.columns) == ["account", "p", "adjusted", "accused"]
    assert list(table.account) == ["bob", "cem", "ann"]
    assert table.adjusted.tolist() == pytest.approx([0.003, 0.04, 0.2])
    assert table.accused.tolist() == [True, True, False]
    strict = accused_accounts({"ann": 0.2, "bob": 0.001, "cem": 0.02}, alpha=0.01)
    assert strict.accused.tolist() == [True, False, False]
    table = accused_accounts({"ann": 0.5, "bob": 100, "cem": 29.9}, method="e-bh")
    assert list(table.columns) == ["account", "e", "adjusted", "accused"]
    assert list(table.account) == ["bob", "cem", "ann"]
    assert table.adjusted.tolist() == pytest.approx([0.03, 3 / 59.8, 1])
    assert table.accused.tolist() == [True, False, False]


def test_accounts_that_share_withheld_pictures_are_not_accused_for_it():
    "Ten innocent accounts, the same withheld pictures, ranks compared by Wilcoxon's test; and one guilty."
    wrong = right = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        withheld = rng.normal(size=30)
        logs = rng.normal(size=(10, 30))
        logs[0] += 1.5
        p = scipy.stats.wilcoxon(logs - withheld, alternative="greater", axis=1).pvalue
        table = accused_accounts(dict(enumerate(p)))
        named = set(table.account[table.accused])
        right += 0 in named
        wrong += bool(named - {0})
    assert at_most(wrong, 300, 0.05) and right > 250


def test_any_account_is_the_mean():
    assert any_account([10, 2, 0]) == 4 and any_account({"a": 3, "b": 5}) == 4


def test_any_account_holds_where_all_accounts_lean_alike():
    "Ten books on the same prompts and answers of an innocent: 1 over their mean is a p-value."
    rng, high = np.random.default_rng(0), 0
    for _ in range(1000):
        common = rng.choice([-1, 1], 60)
        own = rng.choice([-1, 1], (10, 60))
        paid = np.where(rng.random((10, 60)) < 0.7, common, own)
        high += any_account(wealth_path(paid)[:, -1]) >= 20
    assert at_most(high, 1000, 0.05)


def in_accounts(rng, sizes, effects, withheld=2):
    "Scores, labels, prompts and accounts of a log: so many prompts of each account."
    own = np.repeat(np.arange(len(sizes)), sizes)
    labels = np.tile([True] + [False] * withheld, len(own))
    account, prompt = (np.repeat(x, 1 + withheld) for x in (own, np.arange(len(own))))
    scores = rng.normal(size=len(labels)) + labels * np.asarray(effects)[account]
    return scores, labels, prompt, np.array([f"a{k}" for k in account])


def test_the_one_test_of_accounts_is_what_all_ways_to_label_say():
    scores, labels, prompt, account = in_accounts(np.random.default_rng(3), [2, 2], [1.5, 0])
    away = scores.reshape(4, 3) - scores.reshape(4, 3).mean(1, keepdims=True)
    ways = list(itertools.product(range(3), repeat=4))  # the first is the log as it is
    sums = np.array([[away[b, way[b]] for b in range(4)] for way in ways])
    each = np.stack([sums.sum(1), sums[:, :2].sum(1), sums[:, 2:].sum(1)])
    each = (each - each.mean(1, keepdims=True)) / each.std(1, keepdims=True)
    highest = each[1:].max(0)

    def rarity(z):
        return scipy.stats.norm.isf(np.mean(highest >= z - 1e-9))

    both = np.maximum(each[0], [rarity(z) for z in highest])
    found = account_test(scores, labels, prompt, account, draws=20_000)
    assert found.together.p == pytest.approx(np.mean(both >= both[0] - 1e-9), abs=0.015)
    assert found.whole.p == pytest.approx(np.mean(each[0] >= each[0, 0] - 1e-9), abs=0.015)
    assert found.whole.z == pytest.approx(each[0, 0], abs=0.05)
    by_name = found.table.set_index("account")
    assert by_name.z[["a0", "a1"]].tolist() == pytest.approx(each[1:, 0].tolist(), abs=0.05)
    second = np.mean(both >= rarity(each[2, 0]) - 1e-9)
    assert by_name.adjusted["a1"] == pytest.approx(second, abs=0.015)


def test_the_one_test_of_accounts_names_the_right_one_and_holds():
    right = wrong = whole = accused = 0
    for seed in range(200):
        rng = np.random.default_rng([7, seed])
        guilty = account_test(*in_accounts(rng, [15] * 10, [1.6] + [0] * 9), draws=199)
        named = set(guilty.table.account[guilty.table.adjusted <= 0.05])
        right, wrong = right + ("a0" in named), wrong + bool(named - {"a0"})
        whole += guilty.whole.p <= 0.05
        uneven = account_test(*in_accounts(rng, [40, 5, 1, 1], [0] * 4), draws=199)
        accused += uneven.together.p <= 0.05
    assert at_most(wrong, 200, 0.05) and at_most(accused, 200, 0.05)
    assert right > 170 and whole < 120, "the whole log alone would miss it"


def test_many_small_accounts_do_not_drown_the_whole_log():
    "At .01, a large account that was learnt a little beside three hundred of one request."
    found = {"whole": 0, "together": 0}
    for seed in range(60):
        sizes, effects = [300] + [1] * 300, [0.25] + [0.15] * 300
        log = in_accounts(np.random.default_rng([9, seed]), sizes, effects)
        both = account_test(*log, draws=499)
        found["whole"] += both.whole.p <= 0.01
        found["together"] += both.together.p <= 0.01
    assert found["whole"] > 40 and found["together"] > 0.8 * found["whole"]


def test_spreads_of_accounts_are_those_of_their_shuffles():
    scores, labels, prompt, account = in_accounts(np.random.default_rng(5), [3, 8], [0, 0])
    labels[:6] = [True, True, False, True, False, False]  # blocks of two released, and of one
    own = (account == "a1").astype(int)
    away = centred(scores, prompt)
    shuffles = shuffled_labels(labels, prompt, 20_000, np.random.default_rng(0))
    sums = [(shuffles * away)[:, own == k].sum(1) for k in (0, 1)]
    assert _spreads(away, labels, prompt, own) == pytest.approx(np.std(sums, axis=1), rel=0.03)


def test_the_one_test_of_accounts_of_nothing_to_tell():
    "Accounts of one prompt stand as high as each other: none is named, and p is that of the whole log."
    log = in_accounts(np.random.default_rng(0), [1] * 30, [0] * 30)
    found = account_test(*log, draws=199)
    assert found.table.adjusted.min() > 0.05
    alike = account_test(np.ones(90), *log[1:], draws=199)
    assert alike.together.p == 1 and (alike.table.adjusted == 1).all()


def test_which_accounts_can_be_told_apart():
    ann, bob = ["ann"] * 2, ["bob"] * 2
    assert can_be_told_apart([1, 0, 1, 0], ["x"] * 4, ann + bob)
    assert not can_be_told_apart([1, 0, 1, 0], ["x"] * 4, ann + ann), "one account"
    assert not can_be_told_apart([1, 1, 0], ["x"] * 3, ["ann", "bob", "bob"]), "ann has one side"
    assert not can_be_told_apart([1, 1, 0, 0], ["x"] * 4, ["ann", "bob", "", ""]), "shared"
    one_sided = np.array([True, True, False]), ["x"] * 3, np.array(["ann", "bob", "bob"])
    refused(lambda: account_test(np.arange(3.0), *one_sided), "only released or only withheld")


def test_accounts_that_are_refused():
    for judge in (holm, e_bh, any_account):
        refused(partial(judge, []), "no .-values", "each account")
        refused(partial(judge, [0.1, -0.1]), "= -0.1")
        refused(partial(judge, [0.1, np.nan]), "= nan")
    refused(lambda: accused_accounts({}), "no p-values")
    refused(lambda: accused_accounts({"a": 1.5}), "p = 1.5", "'e-bh' takes e-values")
    refused(lambda: accused_accounts({"a": 0.1}, method="bonferroni"), "'bonferroni'", "holm, e-bh")
    for alpha in (0, 1, 5):
        refused(partial(accused_accounts, {"a": 0.1}, alpha), f"alpha = {alpha}")
