"Suspects before the logs of many accounts: who stands where, who is named, and how often wrongly."

import numpy as np
import pandas as pd
import pytest
from helpers import refused
from scipy import stats

from trainprove_nb.lab.account_trials import account_trials
from trainprove_nb.lab.generator_recipes import INNOCENTS, GeneratorRecipes
from trainprove_nb.lab.generator_scales import generator_scale
from trainprove_nb.lab.log_trials import LogPlan, log_stages, stands_before
from trainprove_nb.report.plan import plan_experiment
from trainprove_nb.report.results import read_results, shipped_results
from trainprove_nb.report.sentences import where
from trainprove_nb.report.whose_log import (
    ACCOUNT_CHECKS,
    _without_the_right_one,
    accounts_alt,
    accusations,
    named,
    named_of_found,
    whose_log_sentences,
    wrong_names,
    wrongly_named,
)


def test_every_suspect_stands_before_all_logs_and_some_accounts_have_infringers():
    recipes = GeneratorRecipes(generator_scale("mini", rhos=(0.3, 1)))
    source = recipes.sources(["mini-v1-avatars"])[0]
    plan = LogPlan(recipes, repeats=2, denoised=0)
    wide, trials = account_trials(plan, source, accounts=4, customers=3)
    guilty = [(t.rho, t.k) for t in trials if t.kind == "infringing"]
    assert guilty == [(rho, k) for rho in (0.3, 1) for k in range(3)]
    assert set(INNOCENTS) < {t.kind for t in trials}
    assert all(stands_before(wide, t) == [0, 1, 2, 3] for t in trials)
    stages = log_stages(wide, source, trials)
    assert len(stages["logs"]) == 2 * 4 and len(stages["answers"]) == 2 * len(trials)
    assert "losses" not in stages and "restored" not in stages


@pytest.mark.parametrize(
    "weights, meant", [(["mini-v1-avatars", "mini-v2"], ["mini-v2"]), ([], [])]
)
def test_weights_are_asked_of_sources_that_are_asked_at_all(tmp_path, weights, meant):
    asked = dict(scale="smoke", knobs={}, sources=["mini-v2"], rhos=[1], weights=weights)
    places = str(tmp_path / "lab"), str(tmp_path / "out"), ""
    plan = plan_experiment("accounts", asked, *places, ACCOUNT_CHECKS)
    assert plan.parameters["weights"] == meant
    refused(
        lambda: plan_experiment(
            "accounts", asked | {"weights": "mini-v2"}, *places, ACCOUNT_CHECKS
        ),
        "give a list",
    )


def suspect(name, kind, p, own=None, z=0.0, rho=0.0, access="prompts only"):
    "A suspect before as many logs as there are p-values, of which it learnt the one called own."
    rho = 1.0 if own is not None else rho
    return [
        dict(
            source="s",
            model=name,
            access=access,
            account=k,
            p=value,
            z=9.0 if k == own else z,
            rho=rho,
            kind="infringing" if k == own else "another account" if own is not None else kind,
        )
        for k, value in enumerate(p)
    ]


@pytest.fixture
def table():
    return pd.DataFrame(
        suspect("right", "", [0.001, 0.5, 0.9], own=0)  # 3 × .001
        + suspect("both", "", [0.02, 0.005, 0.9], own=1)  # 3 × .005, then 2 × .02
        + suspect("too weak", "", [0.3, 0.02, 0.9], own=1)  # 3 × .02
        + suspect("wrong", "", [0.4, 0.2, 0.01], own=1)  # 3 × .01
        + suspect("clean", "disjoint data", [0.04, 0.5, 0.6])  # 3 × .04
        + suspect("accused", "disjoint data", [0.01, 0.5, 0.6])
    )


def test_whom_holm_accuses_by_hand(table):
    found = accusations(table)
    accused = found[found.accused].groupby("model").account.apply(lambda k: set(map(int, k)))
    assert accused.to_dict() == {"right": {0}, "both": {0, 1}, "wrong": {2}, "accused": {0}}
    assert set(map(tuple, found[found.right][["model", "account"]].values)) == {
        ("right", 0),
        ("both", 1),
        ("too weak", 1),
        ("wrong", 1),
    }
    assert set(found[found.model == "both"].kind) == {"infringing"}


def test_who_is_named_by_hand(table):
    assert named(table).loc["prompts only", 1.0].to_dict() == {
        "found": "2 of 4",
        "the right one": "2 of 4",
        "a wrong one": "2 of 4",
    }
    rate = named_of_found(table)["prompts only"]
    assert (rate.value, rate.n) == (1, (2,))
    assert named_of_found(table, level=0.02)["prompts only"].value == pytest.approx(2 / 3)
    assert np.isnan(named_of_found(table, level=0.0001)["prompts only"].value)


def test_who_is_named_wrongly_by_hand(table):
    found = wrongly_named(table)["prompts only"]
    # without its own log "both" has .02 and .9 (2 × .02), "wrong" .4 and .01 (2 × .01)
    assert found.loc["another account"].to_dict() == {"each by itself": "2 of 4", "Holm": "2 of 4"}
    assert found.loc["disjoint data"].to_dict() == {"each by itself": "2 of 2", "Holm": "1 of 2"}
    rate = wrong_names(table)["prompts only"]
    low, high = stats.binomtest(3, 6).proportion_ci(method="exact")
    assert (rate.value, rate.low, rate.high) == pytest.approx((0.5, low, high))


def test_holm_holds_where_single_tests_do_not():
    rng, n = np.random.default_rng(0), 400
    rows = [suspect(f"m{i}", "same data", rng.random(10)) for i in range(n)]
    table = pd.DataFrame([row for one in rows for row in one])
    wrong = wrong_names(table)["prompts only"].value * n
    assert stats.binomtest(round(wrong), n, 1 - (1 - 0.05 / 10) ** 10).pvalue > 0.01
    alone = int(wrongly_named(table)["prompts only"].loc["same data", "each by itself"].split()[0])
    assert stats.binomtest(alone, n, 1 - 0.95**10).pvalue > 0.01


def test_what_is_told_of_accounts(table):
    parameters = {"scale": "mini", "customers": 2, "sources": ["s"]}
    told = whose_log_sentences({"": table}, parameters).data
    assert "among 3 is named for 2 of 4 at ρ = 1" in told and "found at .01: 1.00" in told
    assert "Wrong names: 3, on 2 of 3 logs, for 0.50 (0.12–0.88) of all suspects" in told
    nobody = table.assign(p=0.5)
    assert "none is found" in whose_log_sentences({"": nobody}, parameters).data
    assert "9.0 (everybody before others at most 0.0)" in accounts_alt(table)


def test_what_pages_say_of_accounts():
    table = read_results(shipped_results("accounts"), "accounts")[1][""]
    assert (table.groupby("source").account.nunique() == 10).all()
    found = named(table)
    for access in ("prompts only", "prompts only, calibrated"):
        right = found["the right one"][access]
        assert right[0.5] == right[1.0] == "12 of 12"  # "wherever half of the data or more"
        assert found["found"][access][0.3] != right[0.3]  # "a few are not named though found"
        assert int(right[0.3].split()[0]) >= 2 / 3 * 12  # "two cases of three or more"
        rate = wrong_names(table)[access]
        assert rate.low < 0.05 < rate.high  # "as rare as the rule promises"
        names = where(accusations(_without_the_right_one(table)), access=access, accused=True)
        assert names.groupby(["source", "account"]).size().max() == 1  # "one by one"
    wrong = accusations(_without_the_right_one(table)).query("accused")
    pixels = where(wrong, access="prompts only, pixels").groupby(["source", "account"]).size()
    assert wrong_names(table)["prompts only, pixels"].low > 0.05  # "more"
    assert pixels.max() == 5 and len(pixels) == 5  # "few logs, five on a single one"
