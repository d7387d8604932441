"The second paper: TrainProVe against references, and what the origin test promises."

import numpy as np
import pandas as pd
import pytest
from helpers import refused
from scipy import stats

from trainprove_nb.lab.open_trials import origins_of, rival_sets
from trainprove_nb.lab.trials import Trial
from trainprove_nb.provenance.open_set import judge_open, own_p
from trainprove_nb.provenance.origin_test import OriginTest
from trainprove_nb.provenance.trainprove import (
    DOMAINS,
    WORDINGS,
    batch_values,
    class_prompts,
    grubbs_critical,
    grubbs_verdict,
    trainprove,
)
from trainprove_nb.report.open_set import enough, open_rates

# TrainProVe


@pytest.mark.parametrize(
    "n, value", [(3, 1.1543), (5, 1.7150), (8, 2.1266), (10, 2.2900), (20, 2.7082), (50, 3.1282)]
)
def test_grubbs_critical_values_are_the_published_ones(n, value):
    assert grubbs_critical(n) == pytest.approx(value, abs=2e-3)


def test_the_rule_agrees_with_another_implementation_on_many_cases():
    rng, decided = np.random.default_rng(0), set()
    for _ in range(500):
        n, alpha = int(rng.integers(3, 60)), float(rng.uniform(0.001, 0.3))
        shadow = rng.normal(0.8, 0.05, n)
        suspect = rng.normal(0.8 - rng.uniform(-0.05, 0.3), 0.05, n)
        # t² is F with 1 and n - 2 degrees of freedom, and both tails
        f = stats.f.isf(alpha / n, 1, n - 2)
        critical = (n - 1) * (f / (n * (n - 2 + f))) ** 0.5
        mean = sum(shadow) / n
        G = (mean - sum(suspect) / n) / (sum((a - mean) ** 2 for a in shadow) / (n - 1)) ** 0.5
        verdict = grubbs_verdict(shadow, suspect, alpha)
        assert (
            verdict.G == pytest.approx(G)
            and verdict.critical == pytest.approx(critical)
            and verdict.illegal == (G <= critical)
        )
        decided.add(verdict.illegal)
        assert grubbs_verdict(-shadow, -suspect, alpha, "high").G == pytest.approx(G)
    assert decided == {True, False}


def test_what_the_batches_say_by_hand():
    truth = np.array([0, 0, 1, 1, 0])
    scores = np.array([[2.0, 0], [0, 2], [0, 2], [0, 2], [2, 0]])
    assert batch_values("accuracy", scores, truth, 2).tolist() == [0.5, 1, 1]
    assert batch_values("accuracy", scores.argmax(1), truth, 2).tolist() == [0.5, 1, 1]
    p = 1 / (1 + np.exp(2))
    assert batch_values("entropy", scores, truth, 5)[0] == pytest.approx(
        -p * np.log(p) - (1 - p) * np.log(1 - p)
    )
    # class 0: cosines of (1,2), (1,3), (2,3) are 0, 1, 0; class 1: 1
    assert batch_values("similarity", scores, truth, 5)[0] == pytest.approx((1 / 3 + 1) / 2)


def test_the_verdict_hangs_on_the_batch_size_as_method_says():
    "A suspect 20 points below the shadow, on 5,000 pictures: accused at 16 a batch, cleared at 512."
    rng = np.random.default_rng(0)
    truth = np.zeros(5000, int)
    shadow, suspect = (rng.random(5000) > 0.7).astype(int), (rng.random(5000) > 0.5).astype(int)
    assert (
        trainprove(shadow, suspect, truth, 16).illegal
        and not trainprove(shadow, suspect, truth, 512).illegal
    )


def test_bad_input_of_the_paper_test():
    refused(lambda: grubbs_critical(2), "2 batches", "at least 3")
    refused(lambda: grubbs_critical(5, 1.5), r"alpha = 1\.5", "between 0 and 1")
    refused(lambda: grubbs_verdict([0.8] * 4, [0.7]), "no spread", "smaller batches")
    refused(lambda: grubbs_verdict([0.8, 0.7, 0.9], []), "the suspect has 0 batches")
    refused(
        lambda: grubbs_verdict([0.8, np.nan, 0.9], [0.7]),
        "the shadow",
        "1 of them without a finite value",
    )
    refused(
        lambda: batch_values("accuracy", np.zeros(4, int), np.zeros(4, int), 0), "batch_size = 0"
    )
    refused(
        lambda: batch_values("entropy", np.zeros(4, int), np.zeros(4, int)),
        "needs scores",
        "accuracy",
    )
    refused(
        lambda: batch_values("loss", np.zeros((4, 2)), np.zeros(4, int)), "'loss'", "similarity"
    )
    refused(
        lambda: batch_values("accuracy", np.zeros(3, int), np.zeros(4, int)),
        "3 answers to 4 pictures",
    )


def test_every_class_gets_every_wording():
    found = class_prompts(WORDINGS["domain"], ["cat", "frog"], 20)
    assert len(found) == 40 and found[0].endswith("cat") and found[20].endswith("frog")
    assert all(found.count(f"a {d} of a {c}") == 2 for d in DOMAINS for c in ("cat", "frog"))


# The origin test

CHANCE = 0.1


def answers(rng, home, ability=1.0, n=400, origins=("mine", "rival", "real"), edge=1.5):
    return {
        o: rng.random(n)
        < 1 - (1 - CHANCE) * np.exp(-ability * (edge if o == home else 1) * rng.lognormal(0, 0.1))
        for o in origins
    }


def shadows(rng, n=400, m=6):
    return {
        o: [answers(rng, o, rng.lognormal(0, 0.5), n) for _ in range(m)]
        for o in ("mine", "rival", "real")
    }


def judged(suspect, known, owner="mine"):
    return OriginTest(known, CHANCE).judge(suspect, owner)


def test_the_p_value_is_that_of_a_discriminant_between_profiles():
    "In coordinates of its own: contrasts of the accuracies, regressed through the origin by least squares."
    rng = np.random.default_rng(0)
    known, suspect = shadows(rng, 4000), answers(rng, "mine", n=4000)
    test = OriginTest(known, CHANCE)
    found, contrasts = test.judge(suspect, "mine"), np.array([[1, -1, 0], [1, 1, -2.0]]).T
    points = {
        o: np.array([[m[k].mean() for k in known] for m in models]) for o, models in known.items()
    }
    at = np.array([suspect[k].mean() for k in known])

    def u(x):
        return (x.mean(-1, keepdims=True) - CHANCE) * (1 - x.mean(-1, keepdims=True))

    beta = {o: np.linalg.lstsq(u(x), x @ contrasts, rcond=None)[0][0] for o, x in points.items()}
    stray = np.concatenate([x @ contrasts - u(x) * beta[o] for o, x in points.items()])
    covariance = stray.T @ stray / (18 - 3)
    for r in ("rival", "real"):
        w = np.linalg.solve(covariance, beta["mine"] - beta[r])
        t = (
            w
            @ (at @ contrasts - u(at) * beta[r])
            / np.sqrt(w @ covariance @ w * (1 + u(at)[0] ** 2 / (u(points[r]) ** 2).sum()))
        )
        assert found.pvalues[r] == pytest.approx(stats.t.sf(t / test.scale("mine"), 15), rel=1e-6)
    assert (
        found.p == max(found.pvalues.values()) == found.pvalues[found.rival]
        and found.accuracies["real"] == suspect["real"].mean()
    )


def test_the_unit_is_what_left_out_shadows_get():
    rng = np.random.default_rng(4)
    known = shadows(rng, 200)
    got = []
    for r in ("rival", "real"):
        for k, one in enumerate(known[r]):
            test = OriginTest({**known, r: known[r][:k] + known[r][k + 1 :]}, CHANCE)
            got.append(stats.t.isf(test.judge(one, "mine").pvalues[r], 17 - 3) * test.scale("mine"))
    assert OriginTest(known, CHANCE).scale("mine") == pytest.approx(
        max(1, np.sqrt(np.mean(np.square(got))))
    )


def test_who_is_beyond_the_shadows_is_said():
    rng = np.random.default_rng(6)
    known = shadows(rng)
    assert judged(answers(rng, "mine", 9.0), known).beyond == ["rival", "real"] and judged(
        known["rival"][0], known
    ).beyond in ([], ["real"])


def test_innocents_are_rarely_accused_and_the_guilty_often():
    rng = np.random.default_rng(1)

    def share(home):
        return np.mean(
            [
                judged(answers(rng, home, rng.lognormal(0, 0.5)), shadows(rng), "mine").p <= 0.05
                for _ in range(150)
            ]
        )

    # binomial, 150 trials at .05: above .09 once in a hundred
    assert share("rival") <= 0.09 and share("real") <= 0.09
    assert share("mine") > 0.6


@pytest.mark.parametrize("ability", [0.1, 4.0])
def test_poorer_or_better_than_all_shadows_is_not_thereby_guilty(ability):
    rng = np.random.default_rng(2)
    p = [
        judged(answers(rng, home, ability, 1000), shadows(rng, 1000, 9)).p
        for home in ("rival", "real")
        for _ in range(100)
    ]
    assert np.mean(np.array(p) <= 0.05) <= 0.08


def test_more_pictures_give_more_power():
    def power(n):
        rng = np.random.default_rng(3)
        return np.mean(
            [
                judged(answers(rng, "mine", 1.0, n, edge=1.25), shadows(rng, n), "mine").p <= 0.05
                for _ in range(80)
            ]
        )

    assert power(2000) > power(100) + 0.2


def test_bad_input_of_the_origin_test():
    rng = np.random.default_rng(5)
    known, suspect = shadows(rng), answers(rng, "mine")
    refused(lambda: judged(suspect, known, "yours"), "'yours'", "mine")
    refused(lambda: OriginTest({"mine": known["mine"]}, CHANCE), "no rivals")
    refused(
        lambda: OriginTest({**known, "real": known["real"][:3]}, CHANCE),
        "3 shadows of real",
        "at least 4",
    )
    refused(
        lambda: judged({"mine": suspect["mine"]}, known),
        "the suspect to the validation set of 'rival'",
        "ask everybody",
    )
    refused(
        lambda: judged(answers(rng, "mine", n=30), known),
        "the suspect",
        "30",
        "400",
        "True or False",
    )
    refused(
        lambda: judged({o: x.astype(int) for o, x in suspect.items()}, known),
        "int64",
        "True or False",
    )
    refused(
        lambda: judged(
            suspect, {o: [dict.fromkeys(known, np.arange(400) < 20)] * 4 for o in known}
        ),
        "the shadows of mine",
        "chance",
    )
    refused(
        lambda: judged(
            suspect, {o: [dict.fromkeys(known, np.arange(400) < 200)] * 4 for o in known}
        ),
        "do not differ at all",
    )
    refused(
        lambda: OriginTest({**known, "real": [{"real": m["real"]} for m in known["real"]]}, CHANCE),
        "a shadow of real",
        "'mine'",
    )


# Origins that nobody thought of


def test_the_owners_own_are_told_apart_as_rarely_as_the_level_says():
    "Ten shadows an origin, learnt anew for every twenty suspects: F is right although their spread is estimated."
    rng, found = np.random.default_rng(0), []
    for _ in range(30):
        test = OriginTest(shadows(rng, m=10), CHANCE)
        suspects = [answers(rng, "mine", rng.lognormal(0, 0.5), 400) for _ in range(20)]
        found += [own_p(test, suspect, "mine") for suspect in suspects]
    for level in (0.05, 0.2):
        assert abs(np.mean(np.array(found) <= level) - level) < 0.04


def test_the_squared_stray_is_hotellings():
    "With a suspect that knows nothing the owner's line is at 0, and the strays' covariance is all there is."
    rng = np.random.default_rng(1)
    known = shadows(rng, m=8)
    test, right = OriginTest(known, CHANCE), {o: rng.random(400) < CHANCE for o in known}
    a = np.array([right[o].mean() for o in known])
    f, hump = test.fitted.freedom, (a.mean() - CHANCE) * (1 - a.mean())
    stray = (a - a.mean() - max(hump, 0) * test.fitted.shapes["mine"])[:2]  # the third follows
    covariance = np.linalg.pinv(test.fitted.inverse)[:2, :2]
    more = 1 + max(hump, 0) ** 2 / test.fitted.weights["mine"]
    squared = stray @ np.linalg.solve(covariance, stray) / more
    expected = stats.f.sf(squared * (f - 1) / (2 * f), 2, f - 1)
    assert own_p(test, right, "mine") == pytest.approx(expected, rel=1e-6)


def test_who_is_like_nobody_is_of_unknown_origin():
    rng = np.random.default_rng(0)
    test = OriginTest(shadows(rng, m=10), CHANCE)
    own = answers(rng, "mine", 1.0, 400)
    strange = {
        o: rng.random(400) < rate for o, rate in (("mine", 0.9), ("rival", 0.2), ("real", 0.3))
    }
    verdict = judge_open(test, strange, "mine")
    assert (verdict.answer, judge_open(test, own, "mine").answer) == ("unknown origin", "lead")
    assert verdict.p <= 0.05 and verdict.p_own <= 0.05
    assert judge_open(test, strange, "mine", least=0).answer == "lead"  # not asked a second time
    assert judge_open(test, own, "mine", alpha=1e-12).answer == "no lead"
    refused(lambda: judge_open(test, own, "nobody"), "nobody")


def test_every_set_of_rivals_is_tried():
    sets = rival_sets(["a", "b", "c", "d"], "b")
    assert len(sets) == len(set(sets)) == 2**3 - 1 and not any("b" in s for s in sets)


@pytest.mark.parametrize(
    "kind, second, parts",
    [
        ("whole", "", {"a"}),
        ("blend", "b", {"a", "b"}),
        ("mixed", "", {"a", "real"}),
        ("tuned", "", {"a", "real"}),
    ],
)
def test_all_that_a_suspect_learnt_from_counts(kind, second, parts):
    assert origins_of(Trial("a", kind, 1.0, {}, {}, second=second)) == parts


def verdicts():
    "Ten guilty and ten innocents of unknown origin, each before two owners."
    rows = [
        dict(suspect=k, kind="whole", owner=o, guilty=k < 10, known=False, rivals=2, shadows="all")
        for k in range(20)
        for o in ("a", "b")
    ]
    table = pd.DataFrame(rows).assign(p=0.03, p_own=0.5)
    table.loc[table.suspect >= 12, "p"] = 0.3
    table.loc[table.suspect == 10, "p_own"] = 0.01
    return table


def test_intervals_count_suspects_and_not_their_cases():
    rates = open_rates(verdicts())
    (row,) = rates[
        (rates.alpha == 0.05) & (rates.least == 0) & (rates.group == "unknown")
    ].itertuples()
    assert row.suspects == 10 and row.share == pytest.approx(0.2)
    interval = stats.binomtest(2, 10).proportion_ci(method="exact")
    assert (row.low, row.high) == pytest.approx(tuple(interval))
    second = rates[(rates.alpha == 0.05) & (rates.least == 0.05) & (rates.group == "unknown")]
    assert second.share.item() == pytest.approx(0.1)


def test_the_largest_level_that_holds_is_taken():
    found = enough(open_rates(verdicts())).set_index("second")
    assert found.alpha[False] == 0.02 and found.power[False] == 0 and not found.enough.any()
    fewer = verdicts().query("suspect < 10 or suspect >= 12")
    found = enough(open_rates(fewer)).set_index("second")
    assert found.alpha[False] == 0.2 and found.power[False] == 1 and found.enough.all()
