"The lab: what is made is made once, kept whole, and refused when it is damaged."

import ast
import errno
import io
import re
import subprocess
import sys

import numpy as np
import pytest
from helpers import ROOT, full, image, pictures, refused

from trainprove_nb.data import pairs as pair_sets
from trainprove_nb.lab import engine, makers
from trainprove_nb.lab.engine import Lab
from trainprove_nb.lab.generator_recipes import GeneratorRecipes
from trainprove_nb.lab.generator_scales import generator_scale
from trainprove_nb.lab.generator_trials import generator_stages
from trainprove_nb.lab.makers import SHARES, user_split
from trainprove_nb.lab.store import DamagedArtifact, Store, recipe_name, seed_of

# Recipes and seeds


def test_recipe_name_ignores_the_order_of_keys_and_nothing_else():
    recipe = {"kind": "model", "rho": 0.3, "steps": 300, "inputs": [{"a": 1, "b": 2}]}
    assert recipe_name(recipe) == recipe_name(
        {"inputs": [{"b": 2, "a": 1}], "steps": 300, "rho": 0.3, "kind": "model"}
    )
    changes = [
        {"rho": 0.30000001},
        {"steps": "300"},
        {"kind": "Model"},
        {"inputs": [{"a": 1, "b": 3}]},
        {"inputs": []},
        {"more": None},
    ]
    assert len({recipe_name({**recipe, **c}) for c in [{}, *changes]}) == 1 + len(changes)


def test_seeds_of_different_roles_differ():
    roles = [
        (role, source, k)
        for role in ("mining", "suspect data", "answers", "mix")
        for source in ("mini-v1", "mini-v2", "mini-v1-avatars")
        for k in range(200)
    ]
    seeds = [seed_of(*r) for r in roles]
    assert len(set(seeds)) == len(roles) and all(0 <= s < 2**31 for s in seeds)


def test_a_slash_in_a_name_does_not_make_two_roles_one():
    assert seed_of("mix", "data/faces", 1) != seed_of("mix", "data", "faces/1")


# The store

ANSWER = {"kind": "demo", "question": "life"}


def make(folder, scratch):
    (folder / "part").mkdir()
    (folder / "part/answer.txt").write_text("42")


def fails(*_):
    raise AssertionError("made again")


def test_the_second_get_makes_nothing(tmp_path):
    path = Store(tmp_path).get(ANSWER, make)
    assert (
        Store(tmp_path).get(dict(reversed(ANSWER.items())), fails) == path
        and (path / "part/answer.txt").read_text() == "42"
    )


def test_a_maker_that_fails_leaves_nothing_but_its_checkpoints(tmp_path):
    store = Store(tmp_path)

    def dies(folder, scratch):
        make(folder, scratch)
        (scratch / "run.pt").write_text("step 3")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        store.get(ANSWER, dies)
    assert not store.has(ANSWER) and [
        p.name for p in tmp_path.rglob("*") if p.suffix != ".lock" and p.is_file()
    ] == ["run.pt"]

    def goes_on(folder, scratch):
        assert (scratch / "run.pt").read_text() == "step 3"
        make(folder, scratch)

    assert store.get(ANSWER, goes_on) and not list(tmp_path.rglob("run.pt"))


WORKER = """
import sys, time
from pathlib import Path
from trainprove_nb.lab.store import Store
root, me, other = Path(sys.argv[1]), *sys.argv[2:]
def make(folder, scratch):
    with open(root/'made', 'a') as f: f.write('once ')
    time.sleep(.5)
    (folder/'answer.txt').write_text('42')
(root/me).touch()
while not (root/other).exists(): time.sleep(.01)
path = Store(root/'lab').get({'kind': 'demo', 'question': 'life'}, make)
assert (path/'answer.txt').read_text() == '42'
"""


def test_two_processes_make_it_once(tmp_path):
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, tmp_path, *names], stderr=subprocess.PIPE, text=True
        )
        for names in ("ab", "ba")
    ]
    errors = [w.communicate(timeout=60)[1] for w in workers]
    assert [w.returncode for w in workers] == [0, 0], errors
    assert (tmp_path / "made").read_text() == "once "


DAMAGE = {
    "altered": lambda p: p.write_bytes(b"X" + p.read_bytes()[1:]),
    "truncated": lambda p: p.write_bytes(p.read_bytes()[:-1]),
    "missing": lambda p: p.unlink(),
}


@pytest.mark.parametrize("name", ["part/answer.txt", "recipe.json", "manifest.json"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_artifact_is_refused_by_name(tmp_path, damage, name):
    path = Store(tmp_path).get(ANSWER, make)
    DAMAGE[damage](path / name)
    with pytest.raises(DamagedArtifact) as e:
        Store(tmp_path).get(ANSWER, fails)
    assert name in str(e.value) and f"delete {path}" in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("kind", [Store, Lab])
def test_lab_folder_that_cannot_be_written(blocked, kind):
    refused(
        lambda: kind(str(blocked)),
        f"cannot write to {re.escape(str(blocked))}",
        "choose another folder",
        error=OSError,
    )


@full
def test_disk_that_fills_up_leaves_whole_artifacts_only(tmp_path):
    store = Store(tmp_path)
    first = store.get(
        {"kind": "demo", "k": 1}, lambda folder, scratch: (folder / "a.txt").write_text("1")
    )

    def make(folder, scratch):
        (folder / "a.txt").write_text("2")
        (folder / "b.txt").symlink_to("/dev/full")
        (folder / "b.txt").write_text("2")

    with pytest.raises(OSError) as e:
        store.get({"kind": "demo", "k": 2}, make)
    assert e.value.errno == errno.ENOSPC
    assert not store.has({"kind": "demo", "k": 2}) and list(tmp_path.rglob("a.txt")) == [
        first / "a.txt"
    ]
    assert store.get({"kind": "demo", "k": 1}, None) == first


# Makers


def own(n, copies):
    "N different pictures, the first few of them `copies` times."
    images = pictures(n)
    return pair_sets.pairs(
        [*images, *np.repeat(images[:10], copies - 1, axis=0)],
        [f"text {k}" for k in range(n + 10 * (copies - 1))],
    )


def test_own_splits_are_disjoint_and_hold_every_picture_once():
    ds, seen = own(97, 4), []
    for split, n in zip(SHARES, (39, 29, 24, 5), strict=False):
        seen += [i.tobytes() for i in user_split(ds, split, n)["image"]]
        with pytest.raises(ValueError):
            user_split(ds, split, n + 1)
    assert len(seen) == len(set(seen)) == 97 and set(seen) == {i.tobytes() for i in ds["image"]}
    assert sorted(i.tobytes() for i in user_split(ds, "all", 97)["image"]) == sorted(seen)


def test_own_split_of_n_begins_the_larger_one():
    ds = own(100, 1)
    assert user_split(ds, "real", 5)["text"][:] == user_split(ds, "real", 30)["text"][:5]


def test_own_split_of_more_pictures_than_there_are():
    ds = pair_sets.pairs([image()] * 30 + [image(9)], ["text"] * 31)
    refused(
        lambda: user_split(ds, "source", 5, "my pictures"),
        "5 pairs",
        "source split of my pictures",
        "has 1 .of 2 different",
        "give more|ask for fewer",
    )


NAMES = {
    "split of own pictures": (
        lambda: user_split(pair_sets.pairs([image()], ["text"]), "pretrain", 1),
        "'pretrain'",
        "source, real, calibration, evaluation",
    ),
}


@pytest.mark.parametrize("name", NAMES)
def test_unknown_name(name):
    refused(*NAMES[name])


def test_no_caption_is_left_that_the_source_does_not_know(tmp_path):
    "Where all captions are known, `overlap` below 1 cannot be had."

    class Known:
        def pairs(self, recipe):
            return {"text": ["a cat", "a dog"]}

    refused(
        lambda: makers.make_generated(
            Known(), {"role": ["x"], "prompts": [{}, {}], "shares": [2, 2]}, tmp_path, tmp_path
        ),
        "no caption",
        "overlap",
    )


# What kinds of recipes there are


def written_kinds(path):
    "Kinds of the recipes that a module writes."
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Dict):
            for key, found in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "kind":
                    yield found.value


def test_the_table_of_kinds_has_what_recipes_are_written_and_no_more():
    lab = ROOT / "trainprove_nb/lab"
    modules = [*sorted(lab.glob("*_recipes.py")), lab / "laundering.py", lab / "naming_trials.py"]
    assert len(modules) == 5
    assert {kind for path in modules for kind in written_kinds(path)} == set(makers.KINDS)


def test_every_kind_is_made_or_says_why_not():
    for name, kind in makers.KINDS.items():
        assert callable(kind.maker) == bool(kind.files), name
        assert kind.what and kind.inputs and kind.made_by
    made = [kind.maker for kind in makers.KINDS.values() if callable(kind.maker)]
    assert len(made) == len(set(made))
    assert {m.__name__ for m in made} == {n for n in vars(makers) if n.startswith("make_")}


PAIRS_RECIPE = {"kind": "pairs", "corpus": "emoji", "split": "source", "n": 1, "size": 8}


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"kind": "pears"}, "unknown kind of recipe 'pears': choose from base, pairs"),
        ({"n": None}, "a recipe of kind 'pairs' lacks n: give corpus split n size"),
        ({"m": 2}, "a recipe of kind 'pairs' has the unknown m: give corpus"),
    ],
)
@pytest.mark.parametrize("within", [False, True])
def test_a_recipe_has_the_keys_of_its_kind(tmp_path, changes, says, within):
    recipe = {k: v for k, v in {**PAIRS_RECIPE, **changes}.items() if v is not None}
    if within:  # of a recipe that is right
        parts = {"generated": PAIRS_RECIPE, "metric": "rms"}
        recipe = {"kind": "leak", "pairs": recipe, **parts}
    refused(lambda: makers.check_recipe(recipe), says)
    refused(lambda: Lab(str(tmp_path)).path(recipe), says)
    assert [p for p in tmp_path.rglob("*") if p.name == "recipe.json"] == []


@pytest.mark.parametrize(
    "recipe",
    [
        PAIRS_RECIPE,
        {**PAIRS_RECIPE, "identity": "abc"},
        {"kind": "join", "parts": [PAIRS_RECIPE, PAIRS_RECIPE]},
        {**PAIRS_RECIPE, "kind": "labelled", "classes": ["frog"]},
    ],
)
def test_a_recipe_of_its_kind_is_given_back(recipe):
    assert makers.check_recipe(recipe) is recipe


@pytest.mark.parametrize("kind", [k for k, v in makers.KINDS.items() if not v.files])
def test_what_is_not_made_has_no_folder(tmp_path, kind):
    words = makers.KINDS[kind].inputs.replace("?", "").split()
    recipe = {"kind": kind, **dict.fromkeys(words, "x")}
    if kind == "base":
        refused(lambda: Lab(str(tmp_path)).path(recipe), "'x'", "give|choose")
    else:
        refused(lambda: Lab(str(tmp_path)).path(recipe), f"kind '{kind}' has no folder")


# The engine


def test_one_failure_stops_nothing_else(tmp_path):
    lab = Lab(str(tmp_path))
    one, many, larger = ({**PAIRS_RECIPE, **c} for c in ({}, {"n": 5000}, {"size": 16}))
    built = []

    def build():
        for recipe in lab.build([one, many, larger], progress=False):
            built.append(recipe)

    refused(
        build,
        "1 of 3 artifacts",
        "others are kept",
        "5000 pairs asked of emoji/source",
        "ask for 1 to 3000",
        error=RuntimeError,
    )
    assert built == [one, larger] and all(lab.store.has(r) for r in built)


def test_unknown_corpus_stops_at_the_data(tmp_path):
    recipes = GeneratorRecipes(generator_scale("smoke", corpora=["emoji", str(tmp_path / "cats")]))
    lab = Lab(str(tmp_path / "lab"))
    stage = generator_stages(recipes, recipes.sources(["mini-v1-emoji", "mini-v1-cats"]))["data"]
    refused(
        lambda: list(lab.build(stage, progress=False)),
        "no folder at",
        "cats",
        "give an imagefolder",
        error=RuntimeError,
    )
    assert lab.store.has(recipes.train(recipes.sources(["mini-v1-emoji"])[0]))


# What is left


@pytest.mark.parametrize("jobs", [1, 4])
def test_what_is_left_begins_as_expected_and_follows_what_is_seen(jobs):
    bar = engine._Bar(total=3600, file=io.StringIO(), bar_format="{remaining_s}")
    bar.jobs = jobs

    def left(done, seconds):
        bar.n, bar.start_t = done, bar._time() - seconds
        return (3600 - done) / bar.format_dict["rate"]

    assert left(0, 0) == pytest.approx(3600 / jobs, rel=0.02)
    assert left(1, 35) < 2 * 3600  # a slow start; by proportion these would be 35 hours
    assert left(1800, 3600) == pytest.approx(3600, rel=0.05)
    bar.close()
