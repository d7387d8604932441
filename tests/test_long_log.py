"Long logs: parts of them, what is asked for, and what is read from the tables."

import numpy as np
import pandas as pd
import pytest
from helpers import refused
from scipy import stats

from trainprove_nb.data.corpora import SPLITS
from trainprove_nb.evidence.denoising import LEVELS
from trainprove_nb.lab.engine import Lab
from trainprove_nb.lab.generator_recipes import GeneratorRecipes
from trainprove_nb.lab.generator_scales import generator_scale
from trainprove_nb.lab.log_recipes import own_model
from trainprove_nb.lab.log_trials import LogPlan, Pool, log_stages, log_trials, places_of
from trainprove_nb.lab.size_trials import (
    few_prompts,
    measure_questions,
    part_of_log,
    scores_by_effort,
)
from trainprove_nb.report.long_log import (
    found_by,
    long_log_alt,
    long_log_sentences,
    plan_long_log,
)
from trainprove_nb.report.results import read_results, shipped_results

# Parts


class Made:
    "Two accounts, five prompts; of each four released and eight withheld pictures."

    def __init__(self):
        grid = [(a, p, r) for a in (0, 1) for p in "abcde" for r in (1,) * 4 + (0,) * 8]
        self.account, self.prompts, self.released = map(np.array, zip(*grid, strict=True))
        self.released = self.released.astype(bool)
        self.places = places_of(self.prompts)


@pytest.mark.parametrize("m", [1, 2])
def test_a_part_of_a_log_is_of_its_account_and_has_both_sides(m):
    there, seen = Made(), []
    for seed in range(20):
        places, labels = part_of_log(there, 1, 7, m, np.random.default_rng(seed))
        assert (there.account[places] == 1).all() and len(set(places)) == len(places)
        assert (labels == there.released[places]).all() and labels.sum() == 7
        for prompt in set(there.prompts[places]):
            here = there.prompts[places] == prompt
            assert (here & ~labels).sum() == m * (here & labels).sum()
        seen.append(tuple(sorted(places)))
    assert len(set(seen)) == 20


def test_the_whole_log_is_a_part_of_itself():
    places, labels = part_of_log(Made(), 0, 20, 2, np.random.default_rng(0))
    assert sorted(places) == list(range(60)) and labels.sum() == 20


def test_few_prompts_keep_all_their_pictures_and_those_without_another_side_are_not_drawn():
    there = Made()
    lone = (there.account == 1) & (there.prompts == "b") & there.released
    there.released[lone] = False
    seen = set()
    for seed in range(20):
        places = few_prompts(there, 1, 2, np.random.default_rng(seed))
        asked = set(there.prompts[places])
        assert len(asked) == 2 and "b" not in asked and (there.account[places] == 1).all()
        assert len(places) == len(set(places)) == 2 * 12
        seen.add(tuple(sorted(asked)))
    assert len(seen) == 6  # every pair of the other four
    assert len(few_prompts(there, 1, 99, np.random.default_rng(0))) == 4 * 12


@pytest.fixture(scope="module")
def asked_little(tmp_path_factory):
    "A lab with one infringer's answers, and what of them was asked."
    recipes = GeneratorRecipes(generator_scale("smoke", rhos=(1,)))
    plan = LogPlan(recipes, accounts=1, m=1, repeats=2, denoised=0, restored=0)
    (source,) = recipes.sources(["mini-v1-avatars"])
    guilty = [t for t in log_trials(recipes, source, 1) if t.kind == "infringing"]
    lab = Lab(str(tmp_path_factory.mktemp("lab")))
    for _ in lab.build_stages(log_stages(plan, source, guilty)):
        pass
    return lab, plan, source, guilty


def test_questions_are_prompts_times_answers_and_all_of_them_are_the_whole_log(asked_little):
    lab, plan, source, guilty = asked_little
    there = Pool(lab, plan, source)
    scored = scores_by_effort(lab, plan, source, guilty, there)
    found = measure_questions(there, scored, [3, 99], parts=2, draws=99)
    assert set(found.access) == {"prompts only"} and len(found) == 2 * 2 * 2
    assert (found.questions == found.prompts * found.answers).all()
    whole = found[found.prompts == 99].groupby("answers").z.agg(np.ptp)
    assert whole.max() < 0.5  # the same log twice, but for its shuffles
    assert len(few_prompts(there, 0, 99, np.random.default_rng(0))) <= len(there.part)


def test_a_plan_that_asks_prompts_alone_makes_no_losses(asked_little):
    _, plan, source, _ = asked_little
    assert list(log_stages(plan, source)) == ["source", "logs", "suspects", "answers"]
    one = LogPlan(plan.recipes, accounts=2, denoised=1, restored=0)
    pictures = {tuple(r["pairs"]["role"]) for r in log_stages(one, source)["losses"]}
    assert {role[-1] for role in pictures} == {0} and len(LEVELS) > 1


# What is made


def test_suspects_that_learn_from_thousands_draw_from_a_split_that_holds_them():
    usual, long = (GeneratorRecipes(generator_scale("mini", pairs=n)) for n in (500, 5000))
    (source,) = usual.sources(["mini-v1-emoji"])
    small, large = (r.suspect(source, 0.3, 0)["pairs"]["real"] for r in (usual, long))
    assert (small["split"], small["n"]) == ("real", 1500)
    assert (large["split"], large["n"]) == ("real, many", 15_000)
    assert large["n"] <= len(SPLITS[large["split"]])
    (plain,) = long.sources(["mini-v1"])
    parts = long.innocent(plain, "disjoint data", 0)["pairs"]["real"]["parts"]
    assert [(p["split"], p["n"]) for p in parts] == [("real, many", 7500)] * 2


def test_the_owner_s_own_models_of_a_long_log_learn_from_other_pictures_than_suspects():
    long = GeneratorRecipes(generator_scale("mini", pairs=5000))
    (source,) = long.sources(["mini-v1-emoji"])
    for rho in (0, 0.3):
        own = own_model(long, source, rho)["pairs"]["real"]
        assert (own["split"], own["n"]) == ("labelled", 15_000)
        assert own["n"] <= len(SPLITS[own["split"]])
    judged = long.suspect(source, 0.3, 0)["pairs"]["real"]["split"]
    assert not set(SPLITS["labelled"]) & (set(SPLITS[judged]) | set(SPLITS["source"]))


ASKED = dict(scale="mini", knobs={}, sources=["mini-v1-avatars"], rhos=[0.3], accounts=1, m=1)
ASKED |= dict(repeats=3, innocents=1, redrawn=2, sizes=None, prompts=None, parts=2)


def test_a_long_log_has_the_usual_looks(tmp_path):
    plan = plan_long_log(ASKED, str(tmp_path / "lab"), str(tmp_path / "out"))
    scale, usual = plan.recipes.scale, generator_scale("mini")
    looks = [s.suspect_training["steps"] / s.pairs for s in (scale, usual)]
    assert looks[0] == looks[1] and scale.pairs == 10 * usual.pairs
    assert plan.parameters["sizes"][-1] == 5000 and plan.parameters["prompts"][-1] == 1000
    fewer = plan_long_log(ASKED | {"knobs": {"pairs": 600}}, str(tmp_path / "lab"), str(tmp_path))
    assert fewer.parameters["sizes"] == [50, 150, 500]
    wrong = ASKED | {"prompts": [1001]}
    refused(lambda: plan_long_log(wrong, str(tmp_path / "lab"), str(tmp_path)), "prompts has 1001")


# Reading


def parts_of(shares, by="pictures", sizes=(50, 5000)):
    "Rows of suspects, found before these shares of ten parts of each size."
    rows = []
    for suspect, found in enumerate(shares):
        for size, share in zip(sizes, found, strict=True):
            for part in range(10):
                p = 0.01 if part < 10 * share else 0.02
                who = dict(source="s", rho=0.3, suspect=suspect, access="prompts only", answers=3)
                rows.append(who | {by: size, "part": part, "p": p, "z": 1.0})
    return pd.DataFrame(rows)


def test_a_suspect_counts_once_however_many_parts_its_log_has():
    rates = found_by(parts_of([(0.2, 1.0), (0.4, 1.0), (0.0, 0.5)]), "pictures").loc[3]
    assert rates[50].value == pytest.approx(0.2) and rates[5000].value == pytest.approx(2.5 / 3)
    low, high = stats.beta.ppf(0.025, 2.5, 1.5), stats.beta.ppf(0.975, 3.5, 0.5)
    assert (rates[5000].low, rates[5000].high) == pytest.approx((low, high))
    assert rates[5000].n == (3,)


def a_log(p):
    rows = [("infringing", k, 0.3, q, 3.0) for k, q in enumerate(p)]
    rows += [("disjoint data", 0, 0.0, 0.5, 0.1)]
    table = pd.DataFrame(rows, columns=["kind", "suspect", "rho", "p", "z"])
    return table.assign(source="s", account=0, access="prompts only", released=4990)


def test_the_page_says_what_is_enough_and_what_is_not():
    tables = {
        "": a_log([0.001, 0.2]),
        "redrawn": a_log([]).assign(log=0),
        "sizes": parts_of([(0.2, 1.0), (0.4, 0.9)]),
        "questions": parts_of([(0.2, 0.8), (0.4, 0.9)], "prompts", (30, 1000)),
    }
    about = dict(scale="mini", sources=["s"], accounts=2)
    told = long_log_sentences(tables, about).data
    assert "of 4,990 released pictures: of 2 infringers" in told
    assert "0.50 (0.01–0.99) at ρ = 0.3" in told
    assert "enough nine times of ten: 5,000 with 3 answers a prompt." in told
    assert "not 1,000 with 3 answers a prompt (0.85 (" in told
    seen = long_log_alt(tables)
    assert "from 0.30 at 50 released pictures to 0.95 at 5,000" in seen


@pytest.fixture(scope="module")
def shipped():
    return read_results(shipped_results("long_log"), "long_log")[1]


PLAIN, CALIBRATED = "prompts only", "prompts only, calibrated"


def test_what_the_page_says_of_sources(shipped):
    guilty = shipped[""].query("kind == 'infringing' and access == @CALIBRATED")
    found = guilty.assign(found=guilty.p <= 0.01).groupby("source").found.agg(["sum", "size"])
    emoji = found.index.str.endswith("emoji")
    assert found[emoji].sum().tolist() == [6, 6] and found[~emoji].sum().tolist() == [1, 3]


def test_what_the_page_says_of_calibration(shipped):
    guilty = shipped[""].query("kind == 'infringing'")
    found = guilty[guilty.p <= 0.01].groupby("access").size()
    stand = guilty.groupby("access").z.mean()
    assert found[CALIBRATED] == found[PLAIN]  # "finds nobody more"
    assert 0 < stand[CALIBRATED] - stand[PLAIN] < 0.2  # "hardly further out"


def test_what_the_page_says_of_pictures_and_answers(shipped):
    sizes = shipped["sizes"].query("access == @CALIBRATED")
    z = sizes.query("answers == 3 and m == 2").groupby("pictures").z.mean()
    assert 2.5 < z[5000] / z[500] < 4  # "three times the z"
    found = found_by(sizes, "pictures")[5000].map(lambda rate: rate.value)
    assert found[3] - found[2] < (found[2] - found[1]) / 2  # "adds little"
    whole = read_results(shipped_results("release"), "release")[1][""]
    whole = whole.query("kind == 'infringing' and rho == 0.3 and access == @CALIBRATED")
    assert z[500] < whole.z.mean() / 2  # "stand lower"


def test_what_the_page_says_of_other_accounts(shipped):
    others = shipped[""].query("kind == 'another account' and access == @PLAIN")
    accused = int((others.p <= 0.05).sum())
    assert (accused, len(others)) == (4, 18)
    assert stats.binom.sf(accused - 1, len(others), 0.05) == pytest.approx(0.01, abs=0.003)
    redrawn = shipped["redrawn"].query("kind == 'another account'")
    assert redrawn.query("access in [@PLAIN, @CALIBRATED]").p.le(0.05).mean() < 0.08
