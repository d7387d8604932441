"Suspects that are asked prompt by prompt: when bets convict, and what it costs beside a fixed number."

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from trainprove_nb.evidence.betting import Bets, in_secret_order
from trainprove_nb.lab.bet_trials import prompts_until_convicted
from trainprove_nb.report.bet_costs import questions_needed
from trainprove_nb.report.results import read_results, shipped_results

PROMPTS = np.repeat(np.arange(60), 4).astype(str)
RELEASED = np.tile([True, False, False, False], 60)


def scores(effect, seed):
    return np.random.default_rng(seed).normal(size=240) + effect * RELEASED


@pytest.mark.parametrize("effect, seed", [(0.0, 0), (0.7, 1), (1.5, 2), (1.5, 3)])
def test_bets_convict_when_a_book_that_is_kept_prompt_by_prompt_does(effect, seed):
    known, book = scores(effect, seed), Bets(alpha=0.01)
    for pictures in in_secret_order(PROMPTS, seed):
        book.bet(known[pictures], RELEASED[pictures])
        if book.stopped:
            break
    needed = prompts_until_convicted(known, RELEASED, PROMPTS, 0.01, seed)
    assert needed == len(book.payoffs) if book.stopped else np.isnan(needed)


def test_innocents_are_convicted_no_more_often_than_promised():
    n = 300
    needed = [prompts_until_convicted(scores(0, k), RELEASED, PROMPTS, 0.05, k) for k in range(n)]
    assert stats.binomtest(int(np.isfinite(needed).sum()), n, 0.05).pvalue > 0.01 or (
        np.isfinite(needed).mean() < 0.05
    )
    sure = [prompts_until_convicted(scores(3, k), RELEASED, PROMPTS, 0.05, k) for k in range(20)]
    assert np.isfinite(sure).all() and max(sure) < 30


def test_questions_by_hand():
    who = dict(source="s", suspect=0)
    never = float("nan")
    bets = pd.DataFrame(
        [who | dict(rho=1.0, prompts=p) for p in (10.0, 20.0, 30.0, 40.0)]
        + [who | dict(rho=0.3, prompts=p) for p in (90.0, never, never, never)]
    )
    p_values = {(1.0, 10): [0.2, 0.001], (1.0, 50): [0.01, 0.001]}
    p_values |= {(0.3, 10): [0.5, 0.5], (0.3, 50): [0.5, 0.002]}
    fixed = pd.DataFrame(
        who | dict(rho=rho, prompts=number, p=p)
        for (rho, number), some in p_values.items()
        for p in some
    )
    found = questions_needed(bets, fixed, answers=5)
    assert found.loc[1.0].tolist() == [1.0, 150.0, 200.0, 1.0, 250.0]
    assert found.loc[0.3].iloc[[0, 3]].tolist() == [0.25, 0.5]
    assert found.loc[0.3].iloc[[1, 2, 4]].isna().all()  # more than there were


def test_what_the_page_says_of_bets():
    parameters, tables, _ = read_results(shipped_results("release"), "release")
    found = questions_needed(tables["bets"], tables["fixed"], parameters["repeats"])
    bets, fixed = found["questions, 9 of 10"], found["fixed number, 9 of 10"]
    assert fixed[1.0] < bets[1.0] < 2 * fixed[1.0] and fixed[0.5] < bets[0.5]
    assert found["convicted by bets"][0.3] < found["convicted by a fixed test"][0.3]
