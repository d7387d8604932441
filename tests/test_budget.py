"What a grid of suspects costs, against sums by hand, and its schedule against what is known of schedules."

import inspect
import math

import numpy as np
import pytest
from helpers import refused

from trainprove_nb.lab.costs import ASSUMED
from trainprove_nb.lab.generator_recipes import GeneratorRecipes
from trainprove_nb.lab.generator_scales import generator_scale
from trainprove_nb.lab.store import recipe_name
from trainprove_nb.models.finetune import finetune
from trainprove_nb.report.budget import (
    Cards,
    Task,
    budget,
    expected_seconds,
    grid_stages,
    seconds_taken,
    simulate,
    tasks_of,
    unit_counts,
)
from trainprove_nb.report.estimates import _with_inputs, estimate

SECONDS = ASSUMED["paper"].seconds


@pytest.fixture(scope="module")
def stages():
    return grid_stages(GeneratorRecipes(generator_scale("paper")))


# The formula


def test_the_papers_grid_has_900_suspects_and_each_recipe_once(stages):
    assert len(stages["suspects"]) == 6 * 5 * 30 == 900 and len(stages["answers"]) == 3 * 900
    assert len(stages["sources"]) == 4  # two of the six are bases
    names = [recipe_name(r) for recipes in stages.values() for r in recipes]
    assert len(names) == len(set(names))


def test_the_suspects_are_infringers_and_innocents_with_other_data(stages):
    recipes = GeneratorRecipes(generator_scale("paper"))
    grid = [
        recipes.suspect(source, rho, k) if rho else recipes.innocent(source, "disjoint data", k)
        for source in recipes.sources()
        for rho in (0, 0.3, 0.5, 0.7, 1)
        for k in range(30)
    ]
    names = [recipe_name(r) for r in grid]
    assert sorted(names) == sorted(recipe_name(r) for r in stages["suspects"])


def test_units_by_hand(stages):
    "Section 3.1 and the scale's knobs, multiplied out."
    counts = unit_counts(stages)
    assert counts["step"] == (900 + 4) * 3000
    assert counts["search"] == 6 * 200 * math.ceil(300 / 4)
    drawn = 6 * 30 * 500  # what infringers learn from
    mined = 6 * 4 * (3000 + 300)  # four answers to each training pair, and to each optimised prompt
    asked = (
        100 * 3 * (900 + 6 * 4)
    )  # a hundred keys of three kinds; the sources' own answers four times
    assert counts["picture"] == drawn + mined + asked
    assert counts["file"] < 100 and set(counts.index) == {"step", "search", "picture", "file"}


def test_nothing_is_missing_and_nothing_comes_too_late(stages):
    "Each stage needs only what stands in stages before it."
    there = set()
    for recipes in stages.values():
        inside = {recipe_name(r) for x in recipes for r in _with_inputs([x])}
        mine = {recipe_name(r) for r in recipes}
        assert inside - mine <= there
        there |= mine


def test_hours_and_money_by_hand(stages):
    found = budget(unit_counts(stages), SECONDS, Cards(8, price=2.0))
    by_hand = (904 * 3000 * 0.25 + 90_000 * 0.8 + 446_400 * 1.2) / 3600
    assert found["card hours"] == pytest.approx(by_hand, rel=1e-3)
    assert found["hours"] == found["card hours"] / 8 and found["money"] == 2 * found["card hours"]


def test_the_estimate_of_the_same_recipes_is_the_same(stages):
    once = [r for recipes in stages.values() for r in recipes]
    other = estimate(once, "paper", jobs=8)
    found = budget(unit_counts(stages), SECONDS, Cards(8))
    assert other.hours == pytest.approx(found["hours"])
    work = sum(t.seconds for tasks in tasks_of(stages, SECONDS).values() for t in tasks)
    assert work / 3600 == pytest.approx(found["card hours"])


def test_only_a_fine_tuning_is_saved_and_as_often_as_it_really_is(stages):
    tasks = tasks_of(stages, SECONDS)
    every = inspect.signature(finetune).parameters["save_every"].default
    assert {t.piece for t in tasks["suspects"]} == {every * SECONDS["step"]}
    assert all(t.piece == t.seconds for name in ("prompts", "answers") for t in tasks[name])


# The schedule


@pytest.mark.parametrize("n, cards", [(1, 1), (900, 8), (900, 128), (7, 7), (8, 7), (3, 100)])
def test_equal_tasks_without_failures_take_whole_rounds(n, cards):
    found = simulate({"one": [Task(1800, 1800)] * n}, Cards(cards))
    assert found["one"] == pytest.approx(math.ceil(n / cards) / 2)


def test_stages_wait_for_each_other():
    tasks = {"long": [Task(3600, 3600), Task(7200, 7200)], "short": [Task(3600, 3600)] * 2}
    assert simulate(tasks, Cards(2)).tolist() == [2, 3]
    assert simulate(tasks, Cards(1)).tolist() == [3, 5]


def test_who_is_free_first_gets_the_next():
    tasks = {"one": [Task(3600 * h, 3600) for h in (3, 1, 1, 1, 2)]}
    assert simulate(tasks, Cards(2)).tolist() == [5]  # 3 + 2 beside 1 + 1 + 1


@pytest.mark.parametrize("number", [1, 8, 128])
def test_graham_s_bound(stages, number):
    "A list schedule takes at least the mean load, and at most that and the longest task, in each stage."
    tasks = tasks_of(stages, SECONDS)
    loads = {stage: sum(t.seconds for t in found) / number for stage, found in tasks.items()}
    longest = {stage: max(t.seconds for t in found) for stage, found in tasks.items()}
    ends = simulate(tasks, Cards(number))
    took = ends.diff().fillna(ends.iloc[0]) * 3600
    for stage in tasks:
        assert max(loads[stage], longest[stage]) - 1e-6 <= took[stage]
        assert took[stage] <= loads[stage] + (1 - 1 / number) * longest[stage] + 1e-6


# Failures


def by_counting(task, cards):
    "Tries until a piece goes through are geometric; a failed one stops at an exponential's mean, cut off."
    between, pause = cards.between * 3600, cards.pause * 3600
    total, left = 0.0, task.seconds
    while left > 1e-9:
        c = min(task.piece, left)
        p = math.exp(-c / between)
        lost = between - c * p / (1 - p)
        total += c + (1 - p) / p * (lost + pause)
        left -= c
    return total


CASES = [(Task(3600, 3600), 1.0, 0.0), (Task(3600, 600), 1.0, 0.25), (Task(3000, 700), 0.5, 0.1)]


@pytest.mark.parametrize("task, between, pause", CASES)
def test_the_mean_of_a_task_with_failures(task, between, pause):
    cards = Cards(1, between=between, pause=pause)
    assert expected_seconds(task, cards) == pytest.approx(by_counting(task, cards))
    rng = np.random.default_rng(0)
    taken = [seconds_taken(task, cards, rng) for _ in range(20_000)]
    error = np.std(taken) / math.sqrt(len(taken))
    assert abs(np.mean(taken) - by_counting(task, cards)) < 4 * error
    assert error < 0.01 * task.seconds and min(taken) == task.seconds


def test_a_rare_failure_costs_half_a_piece_and_its_pause():
    task, cards = Task(36_000, 1200), Cards(1, between=1000.0, pause=0.2)
    failures = task.seconds / 3600 / cards.between
    lost = expected_seconds(task, cards) - task.seconds
    assert lost == pytest.approx(failures * (1200 / 2 + 0.2 * 3600), rel=0.01)


def test_no_failures_cost_nothing():
    task = Task(100.0, 10.0)
    assert expected_seconds(task, Cards()) == 100
    assert seconds_taken(task, Cards(), np.random.default_rng(0)) == 100


def test_many_tasks_with_failures_fill_the_cards():
    "With many short tasks nobody waits: the schedule is the expected work over the cards."
    task, cards = Task(600, 60), Cards(4, between=0.5, pause=0.05)
    ends = [simulate({"one": [task] * 800}, cards, seed)["one"] for seed in range(5)]
    assert np.mean(ends) == pytest.approx(800 * by_counting(task, cards) / 4 / 3600, rel=0.02)
    assert len(set(ends)) == 5 and ends[0] == simulate({"one": [task] * 800}, cards, 0)["one"]


BAD = [("number", 0), ("number", 1.5), ("price", -1), ("price", math.nan), ("between", 0)]
BAD += [("between", math.nan), ("pause", -0.1), ("pause", math.inf), ("number", True)]


@pytest.mark.parametrize("name, value", BAD)
def test_cards_that_cannot_be(name, value):
    refused(lambda: Cards(**{name: value}), f"{name} = {value!r}", "give")
