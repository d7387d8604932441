"What an experiment will take: the counts by hand, the sums by hand, and nothing begun."

import ast
import re
from pathlib import Path

import nbformat
import pytest
from click.testing import CliRunner
from helpers import refused, sentence

from trainprove_nb import cli
from trainprove_nb.lab.costs import ASSUMED, UNITS, Times, work
from trainprove_nb.lab.engine import Lab
from trainprove_nb.lab.generator_recipes import GeneratorRecipes
from trainprove_nb.lab.generator_scales import generator_scale
from trainprove_nb.lab.store import recipe_name
from trainprove_nb.report import estimates
from trainprove_nb.report.estimates import (
    EXPERIMENTS,
    estimate,
    gigabytes_for,
    holdings,
    needed_recipes,
)


def parameters(name):
    "The parameters of an experiment's notebook."
    cells = nbformat.read(cli.experiments()[name], 4).cells
    cell = next(c for c in cells if "parameters" in c.metadata.get("tags", []))
    return {x.target.id: ast.literal_eval(x.value) for x in ast.parse(cell.source).body}


def needed(name, **changes):
    return needed_recipes(name, parameters(name) | changes)


# Which artifacts


def test_every_experiment_that_makes_something_can_be_estimated():
    makes = [n for n in cli.experiments() if "backend" in parameters(n)]
    assert sorted(makes) == sorted(EXPERIMENTS)
    refused(lambda: needed_recipes("claims", {}), "no estimate for .claims.", "choose from fig6")


def planned(name, tmp_path, **changes):
    "The plan of an experiment's notebook, as its own cells make it."
    names = {}
    for cell in nbformat.read(cli.experiments()[name], 4).cells:
        if cell.cell_type != "code":
            continue
        for statement in ast.parse(cell.source).body:
            exec(ast.unparse(statement), names)
            if "plan" in names:
                return names["plan"]
        if "parameters" in cell.metadata.get("tags", []):
            folders = {k: str(tmp_path / k) for k in ("lab", "out")}
            names.update(changes, **folders)
    raise AssertionError("no plan")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_plan_is_the_notebooks(tmp_path, name):
    "What is estimated is planned with the same checks and parameters as what will be run."
    of_page = planned(name, tmp_path, scale="smoke")
    asked = {
        k: v
        for k, v in (parameters(name) | {"scale": "smoke"}).items()
        if k not in estimates.NOT_ASKED
    }
    ours = EXPERIMENTS[name][0](asked, str(tmp_path / "lab2"), str(tmp_path / "out2"))
    assert ours.parameters == of_page.parameters
    assert getattr(ours, "sources", ()) == getattr(of_page, "sources", ())
    assert getattr(ours, "suspects", ()) == getattr(of_page, "suspects", ())


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_all_that_an_experiment_reads_is_counted(tmp_path, monkeypatch, name):
    "Inputs come first, each once; and everything has a unit of work."
    found = needed(name, scale="smoke")
    names = [recipe_name(r) for r in found]
    assert len(set(names)) == len(names) > 5
    for place, recipe in enumerate(found):
        inputs = {recipe_name(r) for r in estimates._with_inputs([recipe])} - {names[place]}
        assert inputs <= set(names[:place])
    assert {work(r)[0] for r in found} <= set(UNITS)


def test_what_is_estimated_is_what_is_made(tmp_path):
    "A smoke run of an experiment leaves the artifacts that were estimated, and no others."
    asked = parameters("table2") | dict(scale="smoke", sources=["mini-v1-avatars"])
    expected = {recipe_name(r) for r in needed_recipes("table2", asked)}
    planner, (measure,) = EXPERIMENTS["table2"]
    asked = {k: v for k, v in asked.items() if k not in estimates.NOT_ASKED}
    measure(planner(asked, str(tmp_path / "lab"), str(tmp_path / "out")))
    made = {p.parent.name for p in (tmp_path / "lab").glob("*/*/recipe.json")}
    assert made == expected
    left = estimate(needed("table2", **asked), "smoke", str(tmp_path / "lab"))
    assert left.table.missing.sum() == 0 and left.hours == 0 and "drawn" in left.sentences()[-1]


def test_figure_6_at_the_papers_scale_by_hand():
    """Sections 3.1 and 4: six sources, thirty suspects a point, four ρ above 0, three kinds of innocents.

    Fine-tuned: four sources; of infringers, with and without watermark, 6·4·30 each; innocents of the
    same data 30 for each source; those of disjoint data and of another corpus are one a base and
    corpus; ten for calibration, for each base and corpus, and each base's plain source. Answers: to
    three kinds of keys by all of these that stand before a source, and once by the marked."""
    found = needed("fig6", scale="paper")
    kinds = [r["kind"] for r in found]
    innocents = 3 * 30 * 2 + 3 * 10 * 2 + 30 * 2  # disjoint or other corpus; calibration; same data
    assert kinds.count("model") == 4 + 2 * 6 * 4 * 30 + (innocents + 2 * 30 + 60)
    assert kinds.count("model") == 1864
    judged = 6 * (4 * 30 + 3 * 30 + 10)
    own = 6 * 3 * 4
    assert kinds.count("answers") == 3 * judged + 6 * 4 * 30 + own == 4680 + own


# Sums

SMOKE = GeneratorRecipes(generator_scale("smoke"))
SOURCE = SMOKE.sources(["mini-v1-avatars"])[0]
MODEL = SMOKE.innocent(SOURCE, "disjoint data", 0)
ANSWERS = SMOKE.answers(MODEL, SOURCE, "random")


def test_hours_memory_and_disk_are_sums_of_named_numbers():
    found = estimate([MODEL, ANSWERS], "mini", jobs=2, seconds=dict(step=30, picture=6))
    # two steps, ten pictures
    assert found.hours == pytest.approx((2 * 30 + 10 * 6) / 3600 / 2)
    assert found.memory == 2 * ASSUMED["mini"].memory
    assert found.gigabytes == pytest.approx(ASSUMED["mini"].model + 10 * 32 * 32 * 3 / 1e9)
    assert gigabytes_for(SMOKE.reproduction(SOURCE), ASSUMED["mini"]) < 1e-6
    told = " ".join(found.sentences())
    assert "step 30 s" in told and "step, picture as given" in told and "2 workers" in told


def test_a_lab_that_has_measured_is_believed(tmp_path):
    times = Times(str(tmp_path))
    times.note(MODEL, 20.0)
    found = estimate([MODEL, ANSWERS], "mini", str(tmp_path))
    row = found.table.loc["model"]
    assert row.hours == row.measured == pytest.approx(20 / 3600)
    assert found.table.loc["answers"].measured == 0
    # but the user more
    given = estimate([MODEL, ANSWERS], "mini", str(tmp_path), seconds=dict(step=1))
    assert given.table.loc["model"].hours == pytest.approx(2 / 3600)


@pytest.mark.parametrize("value", [0, -1, "fast", None, float("nan"), float("inf")])
def test_seconds_that_are_none(value):
    refused(
        lambda: estimate([MODEL], "mini", seconds={"step": value}), "step = ", "seconds above 0"
    )
    refused(lambda: estimate([MODEL], "mini", seconds={"stp": 1}), "unknown unit 'stp'", "step")


def test_what_a_lab_holds_by_kind(tmp_path):
    lab = Lab(str(tmp_path))
    list(lab.build([SMOKE.train(SOURCE), SMOKE.real("emoji", "evaluation", 3)], progress=False))
    found = holdings(str(tmp_path))
    sizes = [p.stat().st_size for p in (tmp_path / "pairs").rglob("*") if p.is_file()]
    assert found.number.to_dict() == {"pairs": 2}
    assert found.gigabytes["pairs"] == pytest.approx(sum(sizes) / 1e9)
    error = FileNotFoundError
    refused(lambda: holdings(str(tmp_path / "none")), "no lab at", "--lab", error=error)


def test_estimating_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    estimate(needed("fig6", scale="smoke"), "smoke", str(tmp_path / "lab"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "gigabytes, words", [(0.086, "86 MB"), (1.6, "1.6 GB"), (9.96, "10 GB"), (8547.2, "8,547 GB")]
)
def test_a_size_keeps_what_decides_whether_it_fits(gigabytes, words):
    assert estimates._told_bytes(gigabytes) == words


# The command


def call(*args):
    done = CliRunner().invoke(cli.main, [str(a) for a in args])
    return done.exit_code, done.output.strip()


def test_a_plan_begins_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = "figures", "fig6", "claims", "--plan", "-s", "sources=[mini-v1-avatars]"
    code, told = call(*small[:2], *small[3:], "--scale", "smoke", "--jobs", 2)
    assert code == 0, told
    assert re.search(r"model: \d+ missing of \d+ \(\d+ × one step", told)
    assert "with 2 workers" in told and "GB in all" in told and list(tmp_path.iterdir()) == []
    assert "All of them" not in told
    code, told = call("figures", "claims", "--plan")
    assert code == 0 and "claims: no estimate" in told


def test_a_plan_of_several_figures_ends_with_what_all_of_them_take():
    few = "--plan", "-s", "sources=[mini-v1-avatars]", "--scale", "smoke"
    code, told = call("figures", "fig6", "table1", *few)
    assert code == 0, told
    of = re.findall(r"0 of (\d+) artifacts", told)
    one, other, both = map(int, of)
    assert max(one, other) < both < one + other  # what they share is counted once
    assert told.index("table1 at scale") < told.index("All of them, what they share")
    asked = {"scale": "smoke", "sources": ["mini-v1-avatars"]}
    recipes = [r for name in ("fig6", "table1") for r in needed(name, **asked)]
    assert both == len({recipe_name(r) for r in recipes})


def test_status_without_a_lab_and_with_one(tmp_path):
    code, told = call("status", "--lab", tmp_path / "none")
    assert code == 2
    sentence(told, "^Error: no lab at", "--lab")
    list(Lab(str(tmp_path)).build([SMOKE.train(SOURCE)], progress=False))
    code, told = call("status", "--lab", tmp_path)
    assert code == 0 and re.search(r"1 artifacts.*\n +pairs +1 ", told)
    small = "-s", "sources=[mini-v1-avatars]", "--scale", "smoke"
    code, told = call("status", "fig6", *small, "--lab", tmp_path)
    assert code == 0 and re.search(r"pairs: (\d+) missing of (\d+)", told)
    missing, of = map(int, re.search(r"pairs: (\d+) missing of (\d+)", told).groups())
    assert missing == of - 1


BAD = {
    "figure": (["status", "fig99"], "'fig99'"),
    "unit": (["status", "fig6", "--seconds", "stp=1"], "unknown unit 'stp'"),
    "seconds": (["status", "fig6", "--seconds", "step=soon"], "step = 'soon'"),
    "no number": (["status", "fig6", "--seconds", "step"], "KEY=VALUE"),
    "knob": (["figures", "fig6", "--plan", "-s", "N=1000"], "N|1000"),
    "parameter": (["status", "fig6", "-s", "nonsense=1"], "'nonsense'"),
    "workers": (["figures", "fig6", "-s", "backend=dsk"], "unknown backend 'dsk'"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_wrong_is_one_sentence(tmp_path, monkeypatch, what):
    monkeypatch.chdir(tmp_path)
    arguments, says = BAD[what]
    code, told = call(*arguments)
    assert code in (1, 2) and list(Path(tmp_path).iterdir()) == []
    sentence(told.splitlines()[-1], "^Error: ", says)
