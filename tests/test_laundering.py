"Trainings that break down or by LoRA, damaged checkpoints; ways to launder, and what is read from their trials."

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import image, refused
from PIL import Image
from scipy import stats

from trainprove_nb.data.corpora import corpus
from trainprove_nb.data.pairs import pairs, pixels
from trainprove_nb.evidence.denoising import denoising_score
from trainprove_nb.evidence.matching import Differences, whitening
from trainprove_nb.lab import laundering_trials as laundering_module
from trainprove_nb.lab.costs import pictures_of
from trainprove_nb.lab.engine import Lab
from trainprove_nb.lab.generator_recipes import GeneratorRecipes
from trainprove_nb.lab.generator_scales import generator_scale
from trainprove_nb.lab.laundering import (
    CAPTIONS,
    PICTURES,
    WAYS,
    _looks,
    base_of,
    laundered,
    washed,
)
from trainprove_nb.lab.laundering_trials import (
    _losses_alike,
    kernel_matches,
    laundering_stages,
    laundering_trials,
    washed_alike,
)
from trainprove_nb.lab.log_recipes import caption_answers, log_captions, picture_losses, withheld
from trainprove_nb.lab.log_trials import LogPlan, pool
from trainprove_nb.lab.makers import KINDS, check_recipe
from trainprove_nb.lab.overlap_trials import overlap_plan, overlap_stages
from trainprove_nb.lab.size_trials import _doublings
from trainprove_nb.lab.store import recipe_name
from trainprove_nb.lab.trials import Trial
from trainprove_nb.models.finetune import _adapted, _undamaged, finetune
from trainprove_nb.models.pipelines import load_model
from trainprove_nb.report.laundered import (
    DOSES,
    LAUNDERING_CHECKS,
    _stages,
    by_overlap,
    doses,
    doses_alt,
    doses_figure,
    expected_power,
    gain_of_withheld,
    in_front,
    lost,
    other_scores,
    share_found,
    standing,
    survival,
)
from trainprove_nb.report.log_power import leaning, power, shuffles
from trainprove_nb.report.lora import found_by_way, lora_sentences
from trainprove_nb.report.plan import plan_experiment
from trainprove_nb.report.results import read_results, shipped_results

pytestmark = pytest.mark.usefixtures("one_thread")

# Training

TWO = pairs([image(32), image(32)], ["a", "b"])
CORRECTED = ("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight")


def trained(**how):
    "mini-v1 after a few steps on two pictures."
    pipe = load_model("mini-v1")
    finetune(pipe, TWO, **{"steps": 3, "batch_size": 2, "lr": 1e-2, **how})
    return pipe.unet


def same(one, other):
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_lora_leaves_an_ordinary_model_changed_in_its_attention_by_its_rank():
    before, after = load_model("mini-v1").unet, trained(lora=4)
    was, now = before.state_dict(), after.state_dict()
    assert list(was) == list(now) and all(p.requires_grad for p in after.parameters())
    moved = [k for k in was if not torch.equal(was[k], now[k])]
    assert moved == [k for k in was if k.endswith(CORRECTED)]
    ranks = {int(torch.linalg.matrix_rank((now[k] - was[k]).double(), rtol=1e-3)) for k in moved}
    assert max(ranks) <= 4 and ranks != {0}
    assert type(after.mid_block) is type(before.mid_block) and not after.training


def test_lora_repeats_to_the_bit_and_its_seed_counts():
    first = trained(lora=2, steps=2)
    torch.manual_seed(7)
    assert same(first, trained(lora=2, steps=2))
    assert not same(first, trained(lora=2, steps=2, seed=1))


def test_lora_does_not_use_the_caller_s_randomness():
    learner = load_model("mini-v1").unet
    state = torch.random.get_rng_state()
    _adapted(learner, 4, seed=0)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_lora_that_was_interrupted_ends_as_it_would_have(tmp_path):
    file = str(tmp_path / "run.pt")
    trained(lora=2, steps=2, checkpoint=file, save_every=2)
    assert same(trained(lora=2, steps=3, checkpoint=file), trained(lora=2, steps=3))


@pytest.mark.parametrize("rank", [-1, 2.0, True, "4"])
def test_a_rank_that_is_none(rank):
    refused(lambda: trained(lora=rank), re.escape(f"lora = {rank!r}"), "whole number")


def test_lora_beside_a_text_encoder_that_learns_whole():
    refused(lambda: trained(lora=4, train_text=True), "lora = 4", "leave one")


def test_a_training_that_breaks_down_stops_and_leaves_no_checkpoint(tmp_path):
    how = dict(steps=8, lr=1e9, max_norm=1e9, checkpoint=str(tmp_path / "run.pt"), save_every=8)
    refused(lambda: trained(**how), "step 8", "not a finite number", "smaller lr")
    assert not list(tmp_path.iterdir())


def test_a_loss_that_is_none_stops_though_weights_are_finite(monkeypatch):
    at = "trainprove_nb.models.finetune._learn"
    monkeypatch.setattr(at, lambda run, *args: setattr(run, "step", run.step + 1))
    told = "trainprove_nb.models.finetune.training_loss"
    monkeypatch.setattr(told, lambda pipe, *args: pipe.unet.conv_in.bias.sum() * torch.nan)
    refused(lambda: trained(), "step 3", "not a finite number")


def test_a_model_that_broke_down_is_not_stored(tmp_path):
    lab, recipes = Lab(str(tmp_path)), GeneratorRecipes(generator_scale("smoke"))
    source = recipes.sources(["mini-v1-avatars"])[0]
    model = recipes.innocent(source, "disjoint data", 0)
    broken = {**model, "training": {**model["training"], "lr": 1e9, "max_norm": 1e9, "steps": 8}}
    refused(lambda: lab.path(broken), "not a finite number")
    assert not lab.store.has(broken)


# Checkpoints


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    "A checkpoint after two steps."
    file = tmp_path_factory.mktemp("checkpoint") / "run.pt"
    torch.set_num_threads(1)
    trained(steps=2, checkpoint=str(file), save_every=2)
    return file


def altered(checkpoint, tmp_path, place):
    "A copy of a checkpoint with one byte changed."
    file, data = tmp_path / "run.pt", bytearray(checkpoint.read_bytes())
    data[place] ^= 0x10
    file.write_bytes(data)
    return file


def numbers(state):
    "All numbers of a checkpoint, in one order."
    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, dict):
        for key in state:
            yield from numbers(state[key])
    elif isinstance(state, list | tuple):
        for part in state:
            yield from numbers(part)
    else:
        yield torch.tensor(float(state)) if isinstance(state, int | float) else torch.tensor(0.0)


def test_no_changed_byte_gets_into_the_weights(checkpoint, tmp_path):
    whole = list(numbers(_undamaged(str(checkpoint))))
    size = checkpoint.stat().st_size
    places = [0, 30, 64, size - 10, *np.random.default_rng(0).integers(size, size=8)]
    thrown_away = 0
    for place in places:
        found = _undamaged(str(altered(checkpoint, tmp_path, place)))
        thrown_away += found is None
        if found is not None:  # a byte that holds nothing
            assert all(torch.equal(a, b) for a, b in zip(numbers(found), whole, strict=True))
    assert thrown_away >= 8


@pytest.mark.parametrize("damage", ["altered", "cut", "empty"])
def test_a_damaged_checkpoint_is_thrown_away_and_the_end_is_the_same(checkpoint, tmp_path, damage):
    data = checkpoint.read_bytes()
    file = altered(checkpoint, tmp_path, len(data) // 2)
    if damage != "altered":
        file.write_bytes(data[:-1000] if damage == "cut" else b"")
    with pytest.warns(UserWarning, match="truncated or altered: it is thrown away"):
        weights = trained(checkpoint=str(file))
    assert not file.exists() and same(weights, trained())


# Washes


def test_half_size_loses_what_is_finer_and_nothing_else():
    fine = np.indices((32, 32)).sum(0) % 2 * 255
    coarse = np.indices((32, 32))[1] // 16 * 200
    board, halves = (np.repeat(x[..., None], 3, 2).astype(np.uint8) for x in (fine, coarse))
    after = pixels(washed(pairs([board, halves], ["a", "b"]), "half size")).astype(float)
    assert after[0].std() < 20 < board.std()
    assert np.abs(after[1] - halves).mean() < 8


def test_jpeg_is_near_and_not_the_same():
    six = corpus("avatars", "real", 6)
    after = pixels(washed(six, "JPEG")).astype(float)
    far = np.sqrt(((after - pixels(six)) ** 2).mean())
    assert 3 < far < 25 and washed(six, "JPEG")["text"][:] == six["text"][:]


def test_crops_are_parts_of_their_picture_some_of_them_mirrored():
    slope = np.repeat(np.tile(np.arange(32) * 8, (32, 1))[..., None], 3, 2).astype(np.uint8)
    found = washed(pairs([slope] * 10, list("abcdefghij")), "crops", seed=3)
    assert found["text"][:] == list("abcdefghij") * 4
    rows = pixels(found)[:, 16, 2:-2, 0].astype(int)
    rising = (np.diff(rows) >= 0).all(1)
    assert ((np.diff(rows) <= 0).all(1) == ~rising).all() and 8 < rising.sum() < 32
    ends = np.abs(rows[:, -1] - rows[:, 0])
    assert (ends < 0.95 * (slope[0, -3, 0] - slope[0, 2, 0])).all(), "nothing was cut"
    assert len({row.tobytes() for row in rows}) > 4
    again = washed(pairs([slope] * 10, list("abcdefghij")), "crops", seed=3)
    assert (pixels(again) == pixels(found)).all()


@pytest.mark.parametrize("name", ["avatars", "emoji"])
def test_other_words_say_the_same_and_fit(name):
    given = corpus(name, "source", 300)["text"][:]
    other = [CAPTIONS["other words"](text) for text in given]
    bind = {"a", "who", "with", "and", "person", "of", "on", "drawing", "picture", "photo"}
    bind |= {"flat", "line", "face"}
    for was, now in zip(given, other, strict=True):
        assert was != now
        assert set(re.findall(r"[a-z]+", was)) - bind == set(re.findall(r"[a-z]+", now)) - bind
    assert len(set(other)) >= 0.7 * len(set(given))
    tokens = load_model("mini-v1").tokenizer(other).input_ids
    assert max(map(len, tokens)) <= 24, "a caption is cut"


def test_dropped_captions_are_all_one():
    found = washed(corpus("emoji", "real", 5), "no captions")
    assert set(found["text"]) == {"a picture"}


@pytest.mark.parametrize("how", [*PICTURES, *CAPTIONS])
def test_a_wash_leaves_the_given_pairs_as_they_are(how):
    given = corpus("avatars", "real", 3)
    before = pixels(given).copy(), given["text"][:]
    washed(given, how)
    assert (pixels(given) == before[0]).all() and given["text"][:] == before[1]


def test_what_cannot_be_washed():
    three = corpus("avatars", "real", 3)
    refused(lambda: washed(three, "bleach"), "'bleach'", "JPEG", "choose")
    mine = pairs([Image.new("RGB", (8, 8))], ["my holidays"])
    refused(lambda: washed(mine, "other words"), "'my holidays'", "REWORDINGS")


# Ways


@pytest.fixture(scope="module")
def recipes():
    "The mini lab's, its bases called by name: whatever their weights are."
    found = GeneratorRecipes(
        generator_scale("mini", rhos=(0.3, 1), mixed_precision="no", knobs={"threads": 1})
    )
    for name in found.scale.bases:
        found._bases[name] = {"kind": "base", "name": name, "path": name, "identity": name}
    return found


@pytest.fixture(scope="module")
def source(recipes):
    return recipes.sources(["mini-v1-avatars"])[0]


def parts_of(recipe):
    "A recipe, and all in it."
    if isinstance(recipe, dict):
        if "kind" in recipe:
            yield recipe
        recipe = recipe.values()
    elif not isinstance(recipe, list | tuple):
        return
    for part in recipe:
        yield from parts_of(part)


def test_recipes_keep_their_names(recipes, source):
    suspect = recipes.suspect(source, 0.3, 1)
    kept = withheld(recipes, source, 1)
    names = [
        recipe_name(x)
        for x in (
            suspect,
            recipes.innocent(source, "disjoint data", 0),
            kept,
            picture_losses(recipes, suspect, kept),
            caption_answers(recipes, suspect, source, 3),
        )
    ]
    assert names == PINNED


PINNED = [  # as they were before there were ways to launder
    "7fcc1aff0c2ffd804c42",
    "ea6a12786460cea473b5",
    "63c8da9de8450ef4c377",
    "6b23dd740fc444d8df3b",
    "58c7654005807d85eeb4",
]


@pytest.mark.parametrize("way", WAYS)
def test_every_way_is_a_recipe_that_can_be_made_for_guilty_and_innocent(recipes, source, way):
    given = recipes.source(source)
    for model in (recipes.suspect(source, 1, 0), recipes.innocent(source, "disjoint data", 0)):
        found = laundered(recipes, source, model, way)
        check_recipe(found)
        assert found["kind"] == "model"
        from_source = [
            p for p in parts_of(found) if p["kind"] == "generated" and p["model"] == given
        ]
        assert bool(from_source) == (model["pairs"]["rho"] > 0), "an innocent has what was released"


def test_ways_are_all_different_and_the_first_changes_nothing(recipes, source):
    model = recipes.suspect(source, 1, 0)
    names = {way: recipe_name(laundered(recipes, source, model, way)) for way in WAYS}
    assert len(set(names.values())) == len(WAYS) and names["as it is"] == recipe_name(model)
    assert _looks(recipes, source, model, n=8) == model, "8 looks are what suspects have"


def test_what_ways_change(recipes, source):
    model = recipes.suspect(source, 1, 0)
    made = {way: laundered(recipes, source, model, way) for way in WAYS}
    diluted = made["diluted"]["pairs"]
    assert (diluted["rho"], diluted["n"], made["diluted"]["training"]["steps"]) == (0.5, 1000, 500)
    steps = [made[f"{n} looks"]["training"]["steps"] for n in (2, 4, 16, 30)]
    assert steps == [62, 125, 500, 938]
    less = [made[way] for way in ("half the data", "a fifth of the data")]
    assert [m["pairs"]["n"] for m in less] == [250, 100], "of 500, and ρ as it was"
    assert [m["training"]["steps"] for m in less] == [125, 50]
    assert {m["pairs"]["rho"] for m in less} == {1}
    assert made["LoRA, rank 16"]["training"]["lora"] == 16
    assert "lora" not in model["training"]
    assert made["tuned on"]["start"] == model and made["tuned on"]["pairs"]["rho"] == 0
    student = made["student"]
    assert student["start"]["kind"] == "base" and student["pairs"]["model"] == model
    assert sum(student["pairs"]["shares"]) == model["pairs"]["n"]
    bases = {way: base_of(m)["name"] for way, m in made.items()}
    assert bases.pop("another base") == "mini-v2" and set(bases.values()) == {"mini-v1"}


def test_what_no_way_leads_to(recipes, source):
    model = recipes.suspect(source, 1, 0)
    refused(lambda: laundered(recipes, source, model, "bleach"), "'bleach'", "choose from as it is")
    alone = GeneratorRecipes(generator_scale("mini", bases=["mini-v1"]))
    refused(lambda: laundered(alone, source, model, "another base"), "mini-v1 alone", "leave")


# Trials


def test_stages_need_only_what_was_made_before(recipes, source):
    plan = LogPlan(recipes, restored=0, least_asked=1)
    trials = laundering_trials(recipes, source, list(WAYS))
    there = set()
    for stage, wanted in laundering_stages(plan, source, trials).items():
        for recipe in wanted:
            check_recipe(recipe)
            inner = [p for p in parts_of(recipe) if p != recipe]
            made = [p for p in inner if not isinstance(KINDS[p["kind"]].maker, str)]
            missing = [
                p["kind"] for p in made if recipe_name(p) not in there and p["kind"] != "pairs"
            ]
            assert not missing, f"{stage}: {recipe['kind']} needs {missing}"
        there |= {recipe_name(recipe) for recipe in wanted}


def test_every_way_has_infringers_and_an_innocent(recipes, source):
    trials = laundering_trials(recipes, source, ["JPEG", "student"], suspects=2)
    assert len(trials) == 2 * 2 * 3
    for way in ("JPEG", "student"):
        mine = [(t.kind, t.rho, t.k) for t in trials if t.way == (way,)]
        wanted = [("infringing", rho, k) for rho in (0.3, 1) for k in (0, 1)]
        assert mine == [*wanted, ("disjoint data", 0, 0), ("disjoint data", 0, 1)]


# Reading


def rows(way, kind, rho, p, z, access="open weights", account=0):
    who = dict(source="s", account=account, suspect=0, model="m")
    return dict(way=way, kind=kind, rho=rho, p=p, z=z, access=access, **who)


def test_what_survives_by_hand():
    table = pd.DataFrame(
        [
            rows("a", "infringing", 1.0, 0.001, 5.0),
            rows("a", "infringing", 1.0, 0.2, 1.0),
            rows("b", "infringing", 1.0, 0.009, 3.0),
            rows("b", "infringing", 1.0, 0.5, 0.0, "prompts only"),
            rows("b", "another account", 1.0, 0.04, 9.0),
            rows("b", "disjoint data", 0.0, 0.01, 9.0),
        ]
    )
    found = standing(table)
    assert found.loc["a", ("open weights", 1.0)] == 3 == found.loc["b", ("open weights", 1.0)]
    assert np.isnan(found.loc["a", ("prompts only", 1.0)])
    assert lost(table, "open weights", 1.0) == ["a"] and lost(table, "prompts only", 1.0) == ["b"]
    assert lost(table, "open weights", 1.0, level=0.3) == []
    told = survival(table)
    assert told.loc["a", ("open weights", 1.0)] == "z = 3.0, 1 of 2"
    assert told.loc["a", ("prompts only", 1.0)] == ""


def test_scores_for_comparison_stand_aside():
    accesses = ["open weights", "prompts only", "prompts only, pixels", "prompts only, kernel"]
    table = pd.DataFrame([rows("a", "infringing", 1.0, 0.001, 5.0, a) for a in accesses])
    table = pd.concat([table, table.assign(access="open weights, washed")])
    assert list(in_front(table).access.unique()) == [*accesses[:2], "open weights, washed"]


def test_doses_by_hand():
    given = [("as it is", 1.0), ("2 looks", 0.3), ("half the data", 0.3), ("JPEG", 1.0)]
    table = pd.DataFrame([rows(way, "infringing", rho, 0.001, 5.0) for way, rho in given])
    innocent = pd.DataFrame([rows("2 looks", "disjoint data", 0.0, 0.5, 0.0)])
    found = doses(pd.concat([table, innocent]))
    told = {(dosed, way): amount for dosed, way, amount in found[["dosed", "way", "amount"]].values}
    assert told == {
        ("looks at each picture", "as it is"): 8,
        ("looks at each picture", "2 looks"): 2,
        ("share of the log that was learnt", "as it is"): 1.0,
        ("share of the log that was learnt", "half the data"): 0.15,
    }
    assert set().union(*DOSES.values()) <= set(WAYS)
    assert "from 2 to 2, ρ = 0.3: 5.0 to 5.0" in doses_alt(table)


def test_a_run_without_doses_has_an_empty_picture():
    table = pd.DataFrame([rows("JPEG", "infringing", 1.0, 0.001, 5.0)])
    assert len(doses(table)) == 0 and "nothing was dosed" in doses_alt(table)
    assert all(not ax.lines[:-1] for ax in doses_figure(table).axes)  # the level alone


def test_the_kernel_is_that_of_the_pool_s_units(monkeypatch):
    rng = np.random.default_rng(0)
    found = Differences(
        rng.integers(0, 256, (12, 4, 4, 3), dtype=np.uint8),
        ["a", "b", "c"] * 4,
        rng.integers(0, 256, (6, 4, 4, 3), dtype=np.uint8),
        ["a", "b", "c"] * 2,
    )
    there = SimpleNamespace(unit=whitening(found.pictures))
    monkeypatch.setattr(laundering_module, "_differences", lambda *which: found)
    plan, trial = SimpleNamespace(least_asked=0.5, repeats=2), Trial("s", "infringing", 1.0, {})
    told = kernel_matches(None, plan, None, trial, there)
    pictures, answers = found.pictures @ there.unit, found.answers @ there.unit
    apart = np.sqrt(((pictures[:, None] - answers[None]) ** 2).mean(-1))
    own, all_of_them = found.block[:, None] == found.of_answer[None], np.ones(apart.shape, bool)
    for access, met in (("kernel", own), ("kernel of all prompts", all_of_them)):
        kernel = np.where(met, np.exp(-((apart / np.median(apart[met])) ** 2)), 0)
        assert np.allclose(told[f"prompts only, {access}"], kernel.sum(1) / met.sum(1), rtol=1e-4)
    assert kernel_matches(None, plan, None, Trial("s", "infringing", 0.3, {}), there) == {}


def test_expected_power_is_that_of_normal_numbers():
    draws = stats.norm(3.0).rvs(200_000, random_state=0)
    assert expected_power(3.0) == pytest.approx(np.mean(stats.norm.sf(draws) <= 0.01), abs=0.004)
    assert expected_power(0.0, 0.05) == pytest.approx(0.05)


def test_share_found_by_size():
    what = dict(access="open weights", rho=1.0, answers=0, m=2, source="s", suspect=0)
    sizes = pd.DataFrame([what | dict(pictures=n, p=p) for n, p in [(50, 0.5), (50, 0.01), (9, 1)]])
    assert share_found(sizes).iloc[0].to_dict() == {9: 0.0, 50: 0.5}


def test_numbers_of_withheld_pictures_double():
    assert [_doublings(most) for most in (1, 2, 3, 4, 6)] == [
        *([1], [1, 2], [1, 2, 3], [1, 2, 4], [1, 2, 4, 6])
    ]


def test_gain_of_withheld_is_of_the_largest_parts_and_most_answers():
    rows = [
        dict(access=access, rho=1.0, answers=answers, pictures=pictures, m=m, z=z)
        for access, answers, pictures, m, z in [
            ("open weights", 0, 500, 1, 2.0),
            ("open weights", 0, 500, 1, 4.0),
            ("open weights", 0, 500, 4, 5.0),
            ("open weights", 0, 50, 4, 99.0),  # smaller
            ("prompts only", 1, 500, 1, 99.0),  # fewer answers
            ("prompts only", 5, 500, 1, 7.0),
        ]
    ]
    found = gain_of_withheld(pd.DataFrame(rows))
    assert found.loc["open weights", 1.0].to_dict() == {1: 3.0, 4: 5.0}
    assert found.loc["prompts only", 1.0][1] == 7.0


def test_more_withheld_pictures_are_asked_about_for_parts_alone(tmp_path):
    plan = asked(tmp_path, m=1, most_m=4, ways=["JPEG"], own=[], overlaps=[1])
    stages = _stages(plan, plan.sources[0])
    shares = {recipe["shares"][0] for recipe in stages["logs"]}
    released = min(shares)
    assert shares == {released, 4 * released}
    many = [r for r in stages["logs"] if r["shares"][0] == 4 * released]
    four = [r["model"] for r in stages["losses"] if r["pairs"] in many]
    learnt = {model["pairs"]["kind"] for model in four if model["kind"] == "model"}
    assert learnt == {"mix"}  # nobody who washed anything


ASKED = dict(
    scale="smoke", knobs={}, sources=["mini-v1-avatars"], rhos=[0.3, 1], suspects=1, m=2, draws=99
)
ASKED |= {"own": [], "most_m": 4}
ASKED |= dict.fromkeys(("ways", "repeats", "sizes", "parts", "overlaps"))


def asked(folder, **changed):
    where = str(folder / "lab"), str(folder / "out")
    return plan_experiment("laundering", ASKED | changed, *where, "", LAUNDERING_CHECKS)


def test_what_is_left_out_is_decided_by_the_scale(tmp_path):
    small, large = (asked(tmp_path, scale=scale).parameters for scale in ("smoke", "mini"))
    assert len(small["ways"]) == 4 and large["ways"] == list(WAYS)
    assert (small["repeats"], large["repeats"]) == (1, 5)
    assert (small["overlaps"], large["overlaps"]) == ([0], [0, 0.5, 1])
    assert small["sizes"] == [20] and large["sizes"] == [50, 100, 250, 500]
    assert shuffles("smoke") < shuffles("mini") == 9999


@pytest.mark.parametrize(
    "changed, says",
    [
        (dict(ways=["bleach"]), "'bleach'"),
        (dict(ways="JPEG"), "ways = 'JPEG'"),
        (dict(sizes=[21]), "sizes has 21"),
        (dict(m=0), "m = 0"),
        (dict(most_m=1.5), "most_m = 1.5"),
        (dict(draws=9), "draws = 9"),
        (dict(repeats=-1), "repeats = -1"),
        (dict(parts=True), "parts = True"),
        (dict(overlaps=[2]), "overlaps has 2"),
        (dict(overlaps=0.5), "overlaps = 0.5"),
        (dict(suspects=0), "suspects = 0"),
    ],
)
def test_what_cannot_be_asked(tmp_path, changed, says):
    refused(lambda: asked(tmp_path, **changed), re.escape(says), "give|choose")


def test_other_prompts_are_asked_about_as_many_questions(recipes, source):
    usual = LogPlan(recipes, accounts=2, repeats=5, restored=0, least_asked=1)
    same = overlap_plan(usual, source, 1)
    assert same.recipes.scale == recipes.scale and replace(same, recipes=recipes) == usual
    for share in (0, 0.5):
        plan = overlap_plan(usual, source, share)
        captions = log_captions(plan.recipes, source)
        asked = plan.repeats * pictures_of(captions)
        assert asked == pytest.approx(750, abs=pictures_of(captions) / 2)
        kept = [r for r in pool(plan, source) if r["role"][0] == "withheld from suspect"]
        for drawn in (*kept, plan.recipes.generated(source, 0)):
            sets = [c for c, n in zip(drawn["prompts"], drawn["shares"], strict=True) if n]
            parts = captions.get("parts", [captions])
            assert sets == parts, "what is drawn is what is asked"
    assert overlap_plan(replace(usual, repeats=0), source, 0).repeats == 0
    assert overlap_plan(replace(usual, repeats=1), source, 0).repeats == 1


def test_infringers_of_each_overlap_learnt_their_own_log(recipes, source):
    usual = LogPlan(recipes, accounts=2, repeats=1, restored=0, least_asked=1)
    known, unseen = overlap_stages(usual, source, [1, 0])
    assert known["source"] == unseen["source"]
    for stages in (known, unseen):
        learnt = [m["pairs"] for m in stages["suspects"] if m["pairs"].get("rho")]
        assert learnt and all(pairs["generated"] in stages["logs"] for pairs in learnt)
    assert not [log for log in known["logs"] if log in unseen["logs"]]


def test_by_overlap_counts_infringers_before_their_own_logs():
    def row(overlap, kind, z, p):
        return dict(overlap=overlap, access="prompts only", rho=1.0, kind=kind, z=z, p=p)

    rows = [
        *(row(0.0, "infringing", z, p) for z, p in ((3.0, 0.001), (1.0, 0.2))),
        *(row(1.0, kind, 5.0, 0.001) for kind in ("infringing", "another account")),
    ]
    told = by_overlap(pd.DataFrame(rows))
    assert told["prompts only", 1.0].to_dict() == {0.0: "z = 2.0, 1 of 2", 1.0: "z = 5.0, 1 of 1"}


def test_both_sides_are_washed_alike(recipes, source):
    plan = LogPlan(recipes, restored=0, least_asked=1)
    for trial in laundering_trials(recipes, source, ["JPEG", "no captions"]):
        found = _losses_alike(plan, source, trial)
        if trial.way == ("no captions",):
            assert found == {}
            continue
        washes = [(r["pairs"]["how"], r["pairs"]["seed"]) for pair in found.values() for r in pair]
        assert len(set(washes)) == 1 and washes[0][0] == "JPEG"
        assert {place % 2 for place in found} == {0, 1}
        for suspect, base in found.values():
            assert suspect["pairs"] == base["pairs"]
            assert (suspect["model"], base["model"]) == (trial.model, base_of(trial.model))


def test_a_picture_that_is_washed_several_times_gets_the_mean(recipes, source):
    plan = LogPlan(recipes, accounts=1, restored=0, least_asked=1)
    (trial, *_) = laundering_trials(recipes, source, ["crops"])
    parts = [r[0]["pairs"] for r in _losses_alike(plan, source, trial).values()]
    rng, copies, n = np.random.default_rng(0), 4, 5
    made = {
        (recipe_name(model), recipe_name(part)): rng.uniform(0.1, 1, (copies * n, 4))
        for model in (trial.model, base_of(trial.model))
        for part in parts
    }

    class Stored:
        def array(self, recipe):
            return made[recipe_name(recipe["model"]), recipe_name(recipe["pairs"])]

    there = SimpleNamespace(part=np.repeat([0, 1], n))
    (scores,) = washed_alike(Stored(), plan, source, trial, there).values()
    names = [recipe_name(m) for m in (trial.model, base_of(trial.model))]
    suspect, base = (made[name, recipe_name(parts[1])] for name in names)
    each = denoising_score(suspect, base).reshape(copies, n)
    assert np.allclose(scores[n:], [each[:, k].mean() for k in range(n)])


# LoRA


def test_each_way_has_a_rate_of_its_own():
    rows = [
        dict(way=way, access="open weights", kind=kind, rho=rho, source=f"s{k}", z=z, p=p)
        for way, kind, rho, z, p, n in [
            ("LoRA, rank 4", "infringing", 0.3, 2.0, 0.02, 1),
            ("LoRA, rank 4", "infringing", 0.3, 3.0, 0.001, 3),
            ("LoRA, rank 16", "infringing", 0.3, 4.0, 0.001, 4),
            ("LoRA, rank 4", "disjoint data", 0.0, 0.0, 0.001, 9),
        ]
        for k in range(n)
    ]
    table = pd.DataFrame(rows).assign(account=0)
    found = found_by_way(table)
    low, high = stats.binomtest(3, 4).proportion_ci(method="exact")
    rate = found.loc[("LoRA, rank 4", "open weights"), 0.3]
    assert (rate.value, rate.low, rate.high) == pytest.approx((0.75, low, high))
    assert found.loc[("LoRA, rank 16", "open weights"), 0.3].value == 1
    told = lora_sentences({"": table}, {"scale": "mini", "accounts": 2, "sources": ["s0"]}).data
    assert "**LoRA, rank 4**, open weights: found at .01: 0.75" in told and "mean z 2.8" in told
    assert "9 of 9 tests at .05" in told


def test_how_alike_innocents_stand():
    z = {0: [1.0, 3.0], 1: [-2.0, 0.0]}  # means 2 and -1
    rows = [dict(account=k, z=x, kind="disjoint data") for k, both in z.items() for x in both]
    rows.append(dict(account=0, z=99.0, kind="infringing"))
    found = leaning(pd.DataFrame(rows).assign(source="s", access="a")).loc["a"]
    assert found["between logs"] == pytest.approx(np.std([2, -1], ddof=1), abs=0.005)
    assert found["within a log"] == pytest.approx(np.std([1, 3], ddof=1), abs=0.005)


def test_what_the_page_of_classifiers_says():
    tables = read_results(shipped_results("release_classifiers"), "release_classifiers")[1]
    table = tables[""]
    innocent = table[table.kind != "infringing"]
    (many,) = innocent.groupby(["access", "source", "account"]).size().unique()
    within = (leaning(table)["within a log"] ** 2).to_dict()
    of_log = (leaning(table)["between logs"] ** 2 - pd.Series(within) / many).to_dict()
    shared = {a: of_log[a] / (of_log[a] + within[a]) for a in within}
    assert shared["scores"] == pytest.approx(1 / 2, abs=0.05)
    assert shared["scores, calibrated"] == pytest.approx(1 / 6, abs=0.03)
    strict = innocent[innocent.p <= 0.05].groupby("access").size()
    assert strict["scores, calibrated"] < strict["scores"]  # "accuses fewer"
    found = power(table)
    for access in ("scores", "scores, calibrated"):
        assert found.loc[access, 0.5].value == found.loc[access, 1.0].value == 1
    assert found.loc["six labels", 1.0].value > 0.9
    labels = found.loc[["one label", "six labels"], 1.0].map(lambda rate: rate.value)
    calibrated = found.loc[["one label, calibrated", "six labels, calibrated"], 1.0]
    assert (calibrated.map(lambda rate: rate.value).to_numpy() < labels.to_numpy()).all()  # "lose"
    redrawn = tables["redrawn"]
    assert redrawn.groupby(["kind", "access"]).size().min() >= 440 and redrawn.kind.nunique() == 6


def test_what_the_page_of_classifiers_says_of_students():
    tables = read_results(shipped_results("release_classifiers"), "release_classifiers")[1]
    z = tables["students"].groupby(["access", "kind", "who"]).z.mean()
    own = z[:, "infringing"].unstack("who")
    handed_on = own["their students"] / own["infringers"]
    for access in ("scores", "scores, calibrated"):
        assert handed_on[access] == pytest.approx(0.25, abs=0.05)  # "about a quarter"
    for access in ("one label", "six labels", "one label, calibrated", "six labels, calibrated"):
        assert handed_on[access] == pytest.approx(0.4, abs=0.06)  # "about four tenths"
    assert z[:, "another account", "their students"].abs().max() < 0.5  # "and to no other"
    rows = tables["students"].query("who == 'their students' and kind == 'infringing'")
    found = rows.groupby("access").p.agg(["size", lambda p: sum(p <= 0.01)])
    assert (found["size"] == 12).all()
    assert found.iloc[:, 1].max() == found.iloc[:, 1]["scores, calibrated"] == 6  # "at best"


def test_what_the_page_of_laundering_says_of_other_scores():
    found = other_scores(read_results(shipped_results("laundering"), "laundering")[1][""])
    assert found["kernel of all prompts"].abs().max() < 2  # "finds nobody"
    gained = found.calibrated > found.whitened
    assert gained.mean() > 0.9  # "by nearly every way"
    assert (found.kernel - found.whitened).abs().median() < 1.5  # "about as much"


def test_what_the_page_of_laundering_says_of_other_prompts():
    tables = read_results(shipped_results("laundering"), "laundering")[1]
    rows = in_front(tables["overlaps"])
    guilty = rows[rows.kind == "infringing"]
    assert (guilty.p <= 0.01).all()  # "found without exception"
    z = guilty.groupby(["access", "rho", "overlap"]).z.mean().unstack()
    assert list(z) == [0, 0.5, 1] and ((z[0] - z[1]) > -1).all()  # "stand where they stood"
    prompts = guilty.groupby("overlap").prompts.min()
    assert prompts[0] > 3 * prompts[1]
    innocent = rows[rows.kind != "infringing"]
    assert (innocent.p <= 0.05).mean() < 0.1


def test_more_withheld_pictures_are_worth_what_means_let_expect():
    gained = gain_of_withheld(read_results(shipped_results("laundering"), "laundering")[1]["sizes"])
    assert list(gained) == [1, 2, 4]
    for m in (2, 4):  # "about what the suspects gained"
        assert (gained[m] / gained[1]).mean() == pytest.approx((2 * m / (m + 1)) ** 0.5, abs=0.05)


def test_what_pages_say_of_lora():
    found = found_by_way(read_results(shipped_results("lora"), "lora")[1][""])
    assert len(found) == 4  # two ranks, calibrated and not
    assert all(rate.value == 1 for rate in found[1.0])  # "whoever learnt nothing but the log"
    assert all(rate.value <= 0.5 for rate in found[0.3])  # "half or fewer"
    table = read_results(shipped_results("laundering"), "laundering")[1][""]
    ours = table[table.way.str.startswith("LoRA") & (table.kind == "infringing")]
    ours = ours[(ours.rho == 0.3) & (ours.access == "open weights")]
    by_source = dict(list(ours.groupby("source").p))
    assert {name: len(p) for name, p in by_source.items()} == dict.fromkeys(by_source, 2)
    assert (by_source["mini-v1-avatars"] <= 0.01).all()  # "the first had been found at that dose"
    assert (by_source["mini-v1-emoji"] > 0.01).all()  # "and the second was not"
