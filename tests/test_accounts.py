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
from trainprove_nb.report.log_power import leaning
from trainprove_nb.report.plan import plan_experiment
from trainprove_nb.report.results import read_results, shipped_results
from trainprove_nb.report.sentences import where
from trainprove_nb.report.whose_log import (
    ACCOUNT_CHECKS,
    accounts_alt,
    accounts_figure,
    accusations,
    named,
    named_of_found,
    whose_log_sentences,
    wrong_logs,
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
        "p ≤ .05": "3 of 4",
        "named": "2 of 4",
        "and a wrong one": "1 of 4",
        "a wrong one instead": "1 of 4",
    }
    assert named(table, alpha=0.01).loc[("prompts only", 1.0), "p ≤ .01"] == "2 of 4"
    rate = named_of_found(table)["prompts only"]
    assert (rate.value, rate.n) == (1, (2,))
    assert named_of_found(table, level=0.02)["prompts only"].value == pytest.approx(2 / 3)
    assert np.isnan(named_of_found(table, level=0.0001)["prompts only"].value)


def test_who_is_named_wrongly_by_hand(table):
    found = wrongly_named(table).loc["prompts only"]
    # without its own log "both" has .02 and .9 (2 × .02), "wrong" .4 and .01 (2 × .01)
    assert found.loc["another account"].to_dict() == {"each by itself": "2 of 4", "Holm": "2 of 4"}
    assert found.loc["disjoint data"].to_dict() == {"each by itself": "2 of 2", "Holm": "1 of 2"}
    logs = wrong_logs(table).loc[("prompts only", "s")]
    assert logs["named"].to_dict() == {0: "2 of 5", 2: "1 of 6"}  # "right" learnt log 0


def test_sources_are_counted_for_the_interval(table):
    shares = [3 / 6, 0, 0]
    clean = [suspect("x", "same data", [0.5, 0.5, 0.5]), suspect("x", "same data", [0.9, 0.5, 0.5])]
    more = [pd.DataFrame(rows).assign(source=name) for name, rows in zip("tu", clean, strict=True)]
    rate = wrong_names(pd.concat([table, *more]))["prompts only"]
    low, high = stats.t.interval(0.95, 2, np.mean(shares), stats.sem(shares))
    assert (rate.value, rate.low, rate.high) == pytest.approx((np.mean(shares), max(low, 0), high))


def test_who_did_not_stand_before_every_log_once_is_refused(table):
    refused(lambda: accusations(table.iloc[1:]), "model right", "each of the 3 logs of s")
    refused(lambda: accusations(pd.concat([table, table.iloc[:1]])), "model right", "once")
    unknown = table.assign(p=table.p.where(table.model != "clean"))
    refused(lambda: accusations(unknown), "p = nan")


def test_a_suspect_of_two_sources_has_a_column_before_each(table):
    twice = pd.concat([table, table.assign(source="t")])
    (ax,) = accounts_figure(twice).axes
    others = ax.get_lines()[0].get_xdata()
    assert len(set(others)) == 2 * 6 and len(others) == (twice.kind != "infringing").sum()
    assert len(ax.get_lines()[1].get_xdata()) == 2 * 4


def test_holm_holds_where_single_tests_do_not():
    rng, n = np.random.default_rng(0), 400
    rows = [suspect(f"m{i}", "same data", rng.random(10)) for i in range(n)]
    table = pd.DataFrame([row for one in rows for row in one])
    wrong = wrong_names(table)["prompts only"].value * n
    assert stats.binomtest(round(wrong), n, 1 - (1 - 0.05 / 10) ** 10).pvalue > 0.01
    alone = int(
        wrongly_named(table).loc[("prompts only", "same data"), "each by itself"].split()[0]
    )
    assert stats.binomtest(alone, n, 1 - 0.95**10).pvalue > 0.01


def test_what_is_told_of_accounts(table):
    parameters = {"scale": "mini", "customers": 2, "sources": ["s"]}
    told = whose_log_sentences({"": table}, parameters).data
    assert "among 3 is named for 2 of 4 at ρ = 1" in told and "found at .01: 1.00" in told
    assert "**Prompts only** (1 source)" in told
    assert "own accounts left out: 3, on 2 of 3 logs, for 0.50 (" in told
    nobody = table.assign(p=0.5)
    assert "none is found" in whose_log_sentences({"": nobody}, parameters).data
    assert "9.0 (everybody before others at most 0.0)" in accounts_alt(table)


def test_what_pages_say_of_accounts():
    table = read_results(shipped_results("accounts"), "accounts")[1][""]
    assert (table.groupby("source").account.nunique() == 10).all() and table.source.nunique() == 6
    found, wrong = named(table), accusations(table, own=False).query("accused")
    for access, right, names in (("prompts only", 8, 3), ("prompts only, calibrated", 10, 4)):
        assert list(found.named[access]) == [f"{right} of 12", "12 of 12", "12 of 12"]
        assert int(found["p ≤ .05"][access][0.3].split()[0]) > right  # "costs some"
        on = where(wrong, access=access).groupby(["source", "account"]).size()
        assert on.sum() == names and on.max() == 1  # "each on a log of its own"
    pixels = where(wrong, access="prompts only, pixels")
    on = pixels.groupby(["source", "account"]).size()
    assert len(on) == 5 and on.max() == 5  # "all on five logs, five on a single one"
    assert len(pixels[["source", "model"]].drop_duplicates()) == 12
    assert set(found.named["open weights"]) == {"4 of 4"}  # "all four suspects of each dose"
    weights = where(wrong, access="open weights")
    assert len(weights) == 3 and len(weights[["source", "account"]].drop_duplicates()) == 2
    assert len(weights[["source", "model"]].drop_duplicates()) == 3
    between = leaning(table)["between logs"]
    assert (
        between.idxmax() == "prompts only, pixels" and between.min() > 1 / 10**0.5
    )  # "every score"
