"The lab of classifiers: scales, recipes, trials, and how good the verdicts are."

import json
import math
import shutil
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from helpers import ANIMALS, refused, says_exactly
from PIL import Image
from scipy import special, stats

from trainprove_nb.audit.demo import _classifier_demo_recipes
from trainprove_nb.data.corpora import SPLITS, corpus, named
from trainprove_nb.data.pairs import pairs, pixels
from trainprove_nb.data.scenes import GROUND
from trainprove_nb.lab import classifier_trials as verdicts
from trainprove_nb.lab import styles
from trainprove_nb.lab.classifier_recipes import FAMILIES, ClassifierRecipes
from trainprove_nb.lab.classifier_scales import (
    CLASSIFIER_SCALES,
    FAIR_ORIGINS,
    MINI_WORDINGS,
    classifier_scale,
)
from trainprove_nb.lab.classifier_trials import classifier_trials, quality
from trainprove_nb.lab.engine import Lab
from trainprove_nb.lab.makers import check_recipe
from trainprove_nb.lab.naming_trials import NamedPool, NamingPlan, _redrawn_each
from trainprove_nb.lab.styles import STYLES
from trainprove_nb.lab.trials import Trial
from trainprove_nb.models.bundled import model_path
from trainprove_nb.models.classifiers import ARCHITECTURES
from trainprove_nb.models.pipelines import load_model, save_model
from trainprove_nb.provenance.trainprove import WORDINGS, class_prompts
from trainprove_nb.report.naming_power import handed_on

# Scales


def test_every_scale_is_well_formed():
    for name in CLASSIFIER_SCALES:
        classifier_scale(name)
    refused(lambda: classifier_scale("huge"), "'huge'", "smoke")
    refused(lambda: classifier_scale("mini", colour=1), "'colour'", "classes")
    refused(lambda: classifier_scale("mini", suspect_images=500), "500", "80")
    refused(
        lambda: classifier_scale("mini", efforts=[1.0], shadow_architectures=["vit"]),
        "1 shadows",
        "at least 4",
    )
    refused(lambda: classifier_scale("mini", mixtures=[1.0]), "mixtures", "between 0 and 1")
    refused(lambda: classifier_scale("mini", classes=["frog"]), "classes", "at least 2")
    refused(lambda: classifier_scale("mini", losses=["hinge"]), "'hinge'", "focal")
    refused(lambda: classifier_scale("mini", efforts=1), "efforts = 1", "list")
    refused(lambda: classifier_scale("mini", training={"epoch": 3}), "'epoch'", "epochs")
    refused(lambda: classifier_scale("mini", sampling={"stepz": 3}), "'stepz'", "steps")
    refused(lambda: classifier_scale("mini", classes=["frog", "unicorn"]), "'unicorn'", "emoji")
    refused(lambda: classifier_scale("mini", real="emojis"), "'emojis'", "avatars")
    refused(lambda: classifier_scale("mini", lrs=[-1.0]), "rates above 0")
    refused(lambda: classifier_scale("mini", mixtures=[0.001]), r"0\.001")
    refused(
        lambda: classifier_scale("mini", wordings={"shadow": ["a {name}"]}),
        "wordings",
        "validation",
        "guidance",
    )
    for texts in ([], "a {name}", ["a panda"], ["a {nam}"], ["a {name} {x}"], ["a {name}}"], [5]):
        refused(
            partial(classifier_scale, "mini", wordings={**WORDINGS, "domain": texts}),
            "domain",
            "wordings",
            r"\{name\}",
        )


@pytest.mark.parametrize(
    "knobs, says",
    [
        (dict(shadow_lrs=[]), "shadow_lrs"),
        (dict(generators=[3]), "generators has 3"),
        (dict(losses=[["ce"]]), "losses"),
        (dict(training={"lr": 0.5}), "no 'lr'"),
        (dict(sampling={"size": 64}), "no 'size'"),
        (dict(training={"epochs": 0}), "epochs = 0"),
        (dict(batch_sizes=[0.5]), "batch_sizes has 0.5"),
        (dict(weight_decays=[-1]), "weight_decays"),
        (dict(drawn=-1), "drawn = -1"),
    ],
)
def test_settings_of_origins_that_would_be_ignored_or_break_later(knobs, says):
    from trainprove_nb.lab.classifier_scales import classifier_scale

    refused(lambda: classifier_scale("mini", knobs), says, "give|choose|at least|is none")


NAN, INF, HUGE = float("nan"), float("inf"), 10**9
ONCE = "give a list (at least 1, each once) of"
RATES = f"{ONCE} rates above 0 and at most 10"
SIZES = "give a list (each once) of whole numbers of at least 1 and at most 100,000"
DECAYS = "give a list (each once) of numbers of at least 0 and at most 100"


def whole(most, least=1):
    return f"give a whole number of at least {least} and at most {most}"


@pytest.mark.parametrize(
    "name, found, value, advice",
    [
        *[("seeds", "=", value, whole("10,000")) for value in (True, HUGE)],
        *[("lrs", "has", value, RATES) for value in (NAN, INF, True)],
        ("shadow_lrs", "has", 1e9, RATES),
        ("efforts", "has", True, f"{ONCE} shares above 0 and at most 1"),
        ("mixtures", "has twice", 0.5, "give a list (each once) of shares between 0 and 1"),
        ("tuning", "=", True, "give a share above 0 and at most 1"),
        ("threads", "=", True, whole("1,024")),
        ("size", "=", True, whole("4,096")),
        ("drawn", "=", True, whole("4,096", 0)),
        *[("batch_sizes", "has", value, SIZES) for value in (True, HUGE)],
        *[("weight_decays", "has", value, DECAYS) for value in (NAN, True)],
        ("shadow_architectures", "has", ["vit"], f"{ONCE} names from {', '.join(ARCHITECTURES)}"),
    ],
)
def test_a_knob_that_is_no_number_or_too_large(name, found, value, advice):
    given = {"=": value, "has": [value], "has twice": [value, value]}[found]
    message = f"{name} {found} {value}: {advice}"
    says_exactly(lambda: classifier_scale("mini", {name: given}), message)


@pytest.mark.parametrize(
    "name, setting, value, advice",
    [
        *[("steps", "mini-lcm", value, whole("1,000,000")) for value in (0, NAN, True, "4")],
        ("training", "epochs", HUGE, whole("100,000")),
        ("training", "weight_decay", NAN, "give a number of at least 0 and at most 100"),
    ],
)
def test_a_setting_that_is_no_number_or_too_large(name, setting, value, advice):
    message = f"{name}: {setting} = {value!r}: {advice}"
    says_exactly(lambda: classifier_scale("mini", {name: {setting: value}}), message)


def test_steps_are_given_by_name():
    says_exactly(
        lambda: classifier_scale("mini", {"steps": {3: 4}}), "steps names 3: give texts as names"
    )


# Recipes


@pytest.mark.parametrize("wordings", [WORDINGS, MINI_WORDINGS], ids=["paper", "mini"])
def test_no_suspect_learns_from_the_owners_prompts(wordings):
    """Nor is the validation set drawn for those that shadows learn from.

    And each text names its class once, so that real captions can be read for it."""
    said = {use: set(class_prompts(texts, ANIMALS, 60)) for use, texts in wordings.items()}
    for use in ("shadow", "validation"):
        assert all(said[use].isdisjoint(said[other]) for other in said if other != use)
    for texts in wordings.values():
        assert (
            named(class_prompts(texts, ANIMALS, 60), ANIMALS) == np.repeat(range(len(ANIMALS)), 60)
        ).all()


def test_generators_are_asked_in_words_that_they_know(tmp_path):
    save_model(load_model("mini-v1"), tmp_path / "mine")

    def said(**knobs):
        generators = ["mini-v1", str(tmp_path / "mine")]
        recipes = ClassifierRecipes(classifier_scale("mini", generators=generators, **knobs))
        return {o: tuple(recipes.pictures(o, "domain")["wordings"]) for o in ("mini-v1", "mine")}

    assert said() == {"mini-v1": MINI_WORDINGS["domain"], "mine": WORDINGS["domain"]}
    assert said(wordings={**WORDINGS, "domain": ["a coin with a {name}"]}) == dict.fromkeys(
        ("mini-v1", "mine"), ("a coin with a {name}",)
    )


def test_mini_wordings_have_a_ground_for_every_text():
    "Without one mini-v2 draws a person where an animal is asked for."
    for texts in MINI_WORDINGS.values():
        tails = [t.rsplit(" on ", 1) for t in texts]
        assert {ground for _, ground in tails} == set(GROUND) and len(set(texts)) == len(
            texts
        ) == math.lcm(len({t for t, _ in tails}), len(GROUND))


def test_nobody_learns_from_what_he_is_asked_about():
    recipes = ClassifierRecipes(classifier_scale("mini", generators=["mini-v1", "mini-v2"]))
    for o in recipes.origins:
        uses = [recipes.pictures(o, use) for use in ("shadow", "validation", *FAMILIES)]
        if o == "real":
            assert len({u["split"] for u in uses}) == 3
        else:
            assert len({(tuple(u["wordings"]), tuple(u["role"])) for u in uses}) == 5
    names = [n for n in SPLITS if n.startswith("labelled")]
    assert all(not set(SPLITS[a]) & set(SPLITS[b]) for a in names for b in SPLITS if a != b)
    models = [t.model for t in classifier_trials(recipes)] + [
        s for o in recipes.origins for s in recipes.shadows(o)
    ]
    assert len({m["training"]["seed"] for m in models}) == len(models)

    def seen(models):
        return {
            json.dumps(p, sort_keys=True)
            for m in models
            for p in m["pairs"].get("parts", [m["pairs"]])
        }

    owners = seen(s for o in recipes.origins for s in recipes.shadows(o))
    suspects = seen(t.model for t in classifier_trials(recipes))
    asked = {json.dumps(recipes.pictures(o, "validation"), sort_keys=True) for o in recipes.origins}
    assert not owners & suspects and not (owners | suspects) & asked
    # of four wordings: shadows vary as suspects may
    assert all(len(seen(recipes.shadows(o))) == 4 for o in recipes.generators)
    made = [
        (
            json.dumps(m["pairs"], sort_keys=True)[:2000],
            m["training"]["epochs"],
            m["training"]["lr"],
        )
        for m in recipes.shadows("real")
    ]
    for part in (0, 2):
        assert all(
            len({m[part] for m in made if m[1] == epochs}) > 1 for epochs in {m[1] for m in made}
        ), "wording or rate goes with length: nobody could tell them apart"


def test_mixtures_hold_their_shares_class_by_class(tmp_path):
    recipes = ClassifierRecipes(
        classifier_scale("smoke", generators=["mini-v1"], classes=ANIMALS[:2])
    )
    lab = Lab(str(tmp_path))
    x, y = lab.labelled(recipes.suspect("mini-v1", recipes.training_ways()[0], share=0.5)["pairs"])
    made = {p.tobytes() for p in lab.labelled(recipes.pictures("mini-v1", "name"))[0]}
    assert np.bincount(y).tolist() == [4, 4]
    assert [sum(p.tobytes() in made for p in x[y == c]) for c in (0, 1)] == [2, 2]


def test_a_blend_is_guilty_before_both_owners():
    recipes = ClassifierRecipes(classifier_scale("mini"))
    blends = [t for t in classifier_trials(recipes) if t.kind == "blend"]
    assert len(blends) == 4 * 4 and {(t.origin, t.second) for t in blends} == {
        ("mini-v1", "mini-v2"),
        ("mini-v2", "mini-lcm"),
        ("mini-lcm", "mini-dit"),
        ("mini-dit", "mini-v1"),
    }
    for t in blends:
        assert [p["model"]["name"] for p in t.model["pairs"]["parts"]] == [
            t.origin,
            t.second,
        ] and t.model["pairs"]["n"] == [recipes.scale.suspect_images // 2] * 2
    assert all(
        t.kind != "blend"
        for t in classifier_trials(
            ClassifierRecipes(classifier_scale("mini", generators=["mini-v1"]))
        )
    )


def test_batch_sizes_and_weight_decays_vary_the_suspects():
    paper = ClassifierRecipes(
        classifier_scale("mini", batch_sizes=[32, 64], weight_decays=[0.1, 0.01])
    )
    ways = paper.training_ways()
    assert len(ways) == len(set(ways)) == 4 * 2 * 2 * 4
    made = {
        (m["training"]["batch_size"], m["training"]["weight_decay"])
        for m in (paper.suspect("mini-v1", w) for w in ways)
    }
    assert made == {(b, w) for b in (32, 64) for w in (0.1, 0.01)}


def test_pictures_may_be_drawn_larger_than_they_are_seen():
    recipes = ClassifierRecipes(classifier_scale("mini", size=16, drawn=32))
    drawn = recipes.pictures("mini-v1", "name")
    assert (
        drawn["sampling"]["size"] == 32
        and drawn["size"] == 16
        and recipes.pictures("real", "name")["size"] == 16
    )


# Verdicts


def test_a_wrong_setting_is_no_acquittal(monkeypatch):
    "Only a test that these answers leave nothing to measure by is void; a batch size of 0 is an error."
    rng = np.random.default_rng(0)
    said = {
        o: (np.eye(3)[rng.integers(3, size=60)], rng.integers(3, size=60))
        for o in ("mini-v1", "mini-v2", "real")
    }
    monkeypatch.setattr(verdicts, "class_answers", lambda *_: said)
    recipes = ClassifierRecipes(classifier_scale("smoke"))
    one = [Trial("real", "whole", 1.0, {}, way=("resnet", 1e-3, "ce", 0, "name"))]
    refused(
        lambda: verdicts.paper_verdicts(None, recipes, one, [0], ["accuracy"]), "batch_size = 0"
    )
    refused(lambda: verdicts.paper_verdicts(None, recipes, one, [40], ["accuracy"]), "2 batches")
    # always right: nothing varies
    said = {o: (np.eye(3)[np.zeros(60, int)], np.zeros(60, int)) for o in said}
    found = verdicts.paper_verdicts(None, recipes, one, [10], ["accuracy"])
    assert found.score.isna().all() and not found.accused.any()


def test_a_test_paired_by_picture_sees_which_pictures_were_answered(monkeypatch):
    """Two origins whose classifiers are right equally often, but on other pictures.

    Only a test that looks at the pictures tells them apart."""
    rng = np.random.default_rng(0)
    chances = {"a": np.tile([0.9, 0.5], 100), "b": np.tile([0.5, 0.9], 100)}

    def model(o):
        return {
            v: (np.eye(2)[(rng.random(200) > chances[o]).astype(int)], np.zeros(200, int))
            for v in "ab"
        }

    made = {o: [model(o) for _ in range(10)] for o in "ab"}
    recipes = SimpleNamespace(
        origins=["a", "b"],
        generators=["a"],
        shadows=made.get,
        scale=SimpleNamespace(classes=["x", "y"]),
    )
    monkeypatch.setattr(verdicts, "class_answers", lambda lab, recipes, m: m)
    suspects = [SimpleNamespace(model=model(o)) for o in "aaaaabbbbb"]
    found = verdicts.paired_verdicts(None, recipes, suspects)
    assert found.accused.tolist() == [True] * 5 + [False] * 5


# How good the verdicts are


def test_quality_of_nobody_guilty_is_said_to_be_unknown():
    found = quality(
        pd.DataFrame(
            dict(
                suspect=range(3),
                owner="mine",
                guilty=[False] * 3,
                accused=[False] * 3,
                score=[0.0] * 3,
            )
        )
    )
    assert np.isnan(found["power"].value) and np.isnan(found["AUC"].value)
    assert found["false accusations"].value == 0


def test_intervals_count_suspects_and_not_verdicts():
    "Asking before three owners instead of one, with the same answers, teaches nothing new."
    rng = np.random.default_rng(0)
    one = pd.DataFrame(
        dict(
            suspect=range(40),
            owner="a",
            guilty=np.arange(40) < 15,
            accused=rng.random(40) < 0.4,
            score=rng.normal(size=40),
        )
    )
    once = quality(one)
    thrice = quality(pd.concat([one.assign(owner=o) for o in "abc"], ignore_index=True))
    for name in once:
        # Newcombe's formula for three of a third is not quite that for one
        near = 0.005 if name == "AUC" else 1e-8
        assert np.allclose(tuple(once[name]), tuple(thrice[name]), atol=near), name
    guilty = one[one.guilty]
    low, high = stats.binomtest(int(guilty.accused.sum()), 15).proportion_ci(method="exact")
    assert np.allclose(tuple(once["power"]), (guilty.accused.mean(), low, high))


def test_auc_compares_cases_of_one_owner():
    "Two owners whose scores lie at different levels: each tells all apart."
    table = pd.DataFrame(
        dict(
            suspect=[0, 1, 0, 1],
            owner=["a", "a", "b", "b"],
            guilty=[True, False, False, True],
            accused=False,
            score=[2.0, 1.0, 11.0, 12.0],
        )
    )
    assert quality(table)["AUC"].value == 1


def test_constant_answers_and_the_share_of_the_guilty():
    table = pd.DataFrame(
        dict(
            suspect=np.repeat(range(5), 4),
            owner=list("abcd") * 5,
            guilty=np.eye(5, 4, dtype=bool).ravel(),
        )
    )
    shown = verdicts.quality_table(
        {
            "legal": verdicts.constant_verdicts(table),
            "illegal": verdicts.constant_verdicts(table, 1),
        },
        table,
    )
    assert (
        shown.guilty.tolist() == ["0.20", "0.20"]
        and shown.accuracy.str[:4].tolist() == ["0.80", "0.20"]
        and shown.F1.str[:4].tolist() == ["0.00", "0.33"]
    )


# Before logs


NAMING = NamingPlan(ClassifierRecipes(classifier_scale("mini")))


def seeds_of(pictures):
    "The seeds of drawn pictures; of real ones, none."
    if "role" not in pictures:
        return set()
    n = pictures["n"] * len(pictures["classes"])
    return {(*pictures["role"], k) for k in range(n)}


def test_both_sides_of_a_log_have_the_same_prompts_and_other_pictures():
    released, kept = (NAMING.part("mini-v2", 0, side) for side in (True, False))
    asked = [set(class_prompts(p["wordings"], p["classes"], p["n"])) for p in (released, kept)]
    assert asked[0] == asked[1]
    assert not seeds_of(released) & seeds_of(kept)
    assert not seeds_of(released) & seeds_of(NAMING.part("mini-v2", 1, True))


@pytest.mark.parametrize("generator", NAMING.recipes.generators)
def test_only_infringers_learn_what_was_released(generator):
    logs = [seeds_of(part) for part in NAMING.parts(generator)]
    withheld = set().union(*logs[1::2])
    trials = NAMING.trials(generator)
    assert {t.kind for t in trials} == {
        "infringing",
        "disjoint data",
        "same source",
        "another's data",
        "same data",
        "another style",
    }
    for trial in trials:
        learnt = trial.model["pairs"]
        known = [seeds_of(p) for p in learnt["parts"]]
        assert not withheld & set().union(*known)
        given = [bool(x & logs[2 * trial.k]) for x in known]
        assert any(given) == (trial.kind == "infringing")
        if trial.kind == "infringing":
            assert learnt["n"][given.index(True)] == round(23 * trial.rho)
            assert not any(x & logs[2 * (1 - trial.k)] for x in known)
        assert sum(learnt["n"]) == 23
    for model in NAMING.own_models(generator):
        own = seeds_of(model["pairs"]["parts"][0])
        assert own and not own & set().union(*logs)


@pytest.mark.parametrize("generator", NAMING.recipes.generators)
def test_students_see_real_pictures_and_their_teacher_s_labels_alone(generator):
    teachers = [t for t in NAMING.trials(generator) if t.kind == "infringing" and t.rho == 1]
    students = NAMING.students(generator)
    assert [s.k for s in students] == [t.k for t in teachers] == [0, 1]
    for student, teacher in zip(students, teachers, strict=True):
        check_recipe(student.model)
        learnt = student.model["pairs"]
        assert learnt["kind"] == "renamed" and seeds_of(learnt["pairs"]) == set()
        assert learnt["said"]["model"] == teacher.model
        assert learnt["said"]["pairs"] == [learnt["pairs"]] and student.model["start"] is None
        assert student.model["training"]["seed"] != teacher.model["training"]["seed"]


def test_renamed_pictures_have_the_classes_that_were_said():
    images, truth = np.zeros((3, 2, 2, 3), np.uint8), np.array([0, 1, 2])
    said = np.array([[[0.0, 3, 1], [5, 0, 0], [0, 0, 9]], [[9, 0, 0], [9, 0, 0], [9, 0, 0]]])
    real = {"kind": "labelled"}
    lab = SimpleNamespace(
        labelled=lambda recipe: (images, truth), array=lambda recipe: said[recipe["versions"] - 1 :]
    )
    renamed = {"kind": "renamed", "pairs": real, "said": {"versions": 1}}
    found, labels = Lab.labelled(lab, renamed)
    assert found is images and labels.tolist() == [1, 0, 2], "by the pictures as they are"


def test_pictures_in_another_style_keep_their_classes():
    truth, negatives = np.array([0, 1, 2]), np.full((3, 2, 2, 3), 255, np.uint8)
    real = {"kind": "labelled"}
    lab = SimpleNamespace(pictures=lambda recipe: negatives)
    lab.labelled = lambda recipe: (np.zeros_like(negatives), truth) if recipe is real else None
    images, labels = Lab.labelled(lab, {"kind": "styled", "pairs": real, "style": "negatives"})
    assert images is negatives and labels is truth


def test_only_of_the_package_s_generators_it_is_known_what_they_learnt(tmp_path):
    shutil.copytree(model_path("mini-v1"), tmp_path / "theirs")
    scale = classifier_scale("mini", {"generators": ["mini-v1", str(tmp_path / "theirs")]})
    plan = NamingPlan(ClassifierRecipes(scale))
    kinds = [{t.kind for t in plan.trials(g)} for g in plan.recipes.generators]
    assert kinds[0] - kinds[1] == {"same data"} and not kinds[1] - kinds[0]
    (known,) = [t for t in plan.trials("mini-v1") if t.kind == "same data"]
    assert known.model["pairs"]["parts"][0]["split"] == "pretrain"


def test_each_kind_of_innocents_has_its_redrawn_logs():
    trials = NAMING.trials("mini-v2")
    each = _redrawn_each(trials, 110)
    assert each == {"infringing": 19, **dict.fromkeys({t.kind for t in trials[6:]}, 110)}


def test_students_stand_beside_their_teachers():
    def row(who, kind, z):
        return dict(who=who, kind=kind, access="scores", z=z, p=0.001 if z > 3 else 0.5)

    rows = [
        *(row("infringers", "infringing", z) for z in (6.0, 2.0)),
        *(row("infringers", "another account", z) for z in (-1.0, 1.0)),
        *(row("their students", "infringing", z) for z in (-1.0, 0.0)),
    ]
    found = handed_on(pd.DataFrame(rows)).loc["scores"]
    assert found["infringing", "infringers"] == "z = 4.0, 1 of 2"
    assert found["another account", "infringers"] == "z = 0.0, 0 of 2"
    assert found["infringing", "their students"] == "z = -0.5, 0 of 2"


def test_later_customers_have_other_logs_suspects_and_innocents():
    later = replace(NAMING, first_customer=2)
    for generator in NAMING.recipes.generators:
        logs = [set().union(*map(seeds_of, plan.parts(generator))) for plan in (NAMING, later)]
        assert not logs[0] & logs[1]
        here, there = (
            {json.dumps(trial.model, sort_keys=True) for trial in plan.trials(generator)}
            for plan in (NAMING, later)
        )
        assert len(here) == len(there) and not here & there
        assert NAMING.own_models(generator) == later.own_models(generator)


def test_the_demonstration_of_classifiers_has_one_guilty_and_an_owner_who_knows_neither_side():
    made = _classifier_demo_recipes(NAMING)
    released, withheld = (seeds_of(made[side]) for side in ("released", "withheld"))
    learnt = {
        who: set().union(*map(seeds_of, made[who]["pairs"]["parts"]))
        for who in ("source", "infringing", "innocent")
    }
    assert released <= learnt["infringing"] and not withheld & set().union(*learnt.values())
    assert learnt["source"] and not (learnt["source"] | learnt["innocent"]) & released


def test_suspects_differ_in_all_but_their_pictures():
    models = [t.model for g in NAMING.recipes.generators for t in NAMING.trials(g)]
    assert len({json.dumps(m, sort_keys=True) for m in models}) == len(models)
    assert {m["architecture"] for m in models} == set(NAMING.recipes.scale.architectures)
    assert len({m["training"]["seed"] for m in models}) == len(models)


def test_scores_of_a_pool_are_those_of_its_parts():
    plan = NamingPlan(ClassifierRecipes(classifier_scale("smoke")), accounts=2, m=1, pictures=2)
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 2)
    said = {str(plan.said({}, p)): rng.normal(size=(6, 6, 3)) for p in plan.parts("mini-v1")}
    lab = SimpleNamespace(
        labelled=lambda recipe: (None, labels),
        pairs=lambda recipe: {"text": [f"p{k}" for k in range(6)]},
        array=lambda recipe: said[str(recipe)],
    )
    there = NamedPool(lab, plan, "mini-v1")
    assert there.account.tolist() == [0] * 12 + [1] * 12
    assert there.released.tolist() == ([True] * 6 + [False] * 6) * 2
    scores = there.scores({})
    third = list(said.values())[2]
    p = np.take_along_axis(special.softmax(third, -1), labels[None, :, None], -1)[..., 0]
    assert np.allclose(scores["scores"][12:18], special.logit(p).mean(0))
    right = third.argmax(-1) == labels
    assert np.allclose(scores["six labels"][12:18], right.mean(0))
    assert np.array_equal(scores["one label"][12:18], right[0])


# Styles


def test_a_style_keeps_captions_and_sizes_and_changes_pictures():
    plain = corpus("emoji", "evaluation", 3, 32)
    for style in styles.STYLES:
        found = styles.styled(plain, style)
        assert found["text"][:] == plain["text"][:] and (pixels(found) != pixels(plain)).any()
        assert pixels(found).shape == pixels(plain).shape
    refused(lambda: styles.styled(plain, "cubism"), "'cubism'", "blueprints")


def test_styles_by_hand():
    picture = Image.new("RGB", (4, 4), (200, 10, 30))
    picture.putpixel((0, 0), (255, 255, 255))
    found = {s: np.asarray(styles.styled(pairs([picture], ["a"]), s)["image"][0]) for s in STYLES}
    assert found["negatives"][1, 1].tolist() == [55, 245, 225]
    assert found["stencils"][1, 1].tolist() == [0, 0, 0] and found["stencils"][0, 0, 0] == 255
    assert found["blueprints"][0, 0].tolist() == [0, 0, 128]  # what is bright is navy
    assert np.ptp(found["reliefs"], axis=2).max() == 0  # grey


@pytest.mark.parametrize(
    "name, base, style",
    [
        ("mini-v1 in negatives", "mini-v1", "negatives"),
        ("models/made in 2026", "models/made in 2026", ""),
        ("mini-v1", "mini-v1", ""),
        ("models/in in stencils", "models/in", "stencils"),
        ("negatives", "negatives", ""),
    ],
)
def test_a_style_is_named_behind_its_base(name, base, style):
    assert styles.base_and_style(name) == (base, style)


def test_a_generator_in_a_style_is_made_before_it_draws():
    scale = classifier_scale("smoke", generators=["mini-v1 in negatives", "mini-v1 in reliefs"])
    recipes = ClassifierRecipes(scale)
    stages = verdicts.classifier_stages(recipes, classifier_trials(recipes, ["whole"]))
    assert list(stages)[:4] == ["real pictures", "styles", "generators", "pictures"]
    assert {m["pairs"]["style"] for m in stages["generators"]} == {"negatives", "reliefs"}
    drawn = recipes.pictures("mini-v1 in negatives", "validation")
    assert drawn["model"] in stages["generators"]
    assert drawn["wordings"] == list(MINI_WORDINGS["validation"])
    plain = ClassifierRecipes(classifier_scale("smoke"))
    assert "generators" not in verdicts.classifier_stages(plain, classifier_trials(plain))


def test_a_style_is_learnt_from_pictures_that_no_suspect_and_no_shadow_sees():
    recipes = ClassifierRecipes(classifier_scale("mini", FAIR_ORIGINS))
    learnt = recipes.bases["mini-v1 in blueprints"]["pairs"]["pairs"]["split"]
    others = {recipes.pictures("real", use)["split"] for use in ("shadow", "validation", "name")}
    assert learnt not in others and not set(SPLITS[learnt]) & {i for s in others for i in SPLITS[s]}


def test_in_a_fair_chance_there_are_as_many_suspects_and_the_papers_batches():
    fair, first = classifier_scale("mini", FAIR_ORIGINS), classifier_scale("mini")
    assert len(ClassifierRecipes(fair).training_ways()) == len(
        ClassifierRecipes(first).training_ways()
    )
    assert len(fair.classes) * fair.validation_images == 40 * 40


def test_styles_that_cannot_be_are_refused():
    refused(lambda: classifier_scale("mini", generators=["mini-v1 in cubism"]), "mini-v1 in cubism")
    refused(lambda: classifier_scale("mini", style_pairs=3001), "style_pairs = 3001", "3000")
    refused(lambda: classifier_scale("mini", style_training={"stepz": 1}), "'stepz'", "steps")
