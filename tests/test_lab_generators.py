"The lab of generators: scales, recipes, trials, and what is made of their scores."

import numpy as np
import pandas as pd
import pytest
from helpers import refused, says_exactly
from sklearn.metrics import accuracy_score, roc_auc_score, roc_curve

from trainprove_nb.lab.classifier_scales import classifier_scale
from trainprove_nb.lab.discriminator_trials import rates
from trainprove_nb.lab.generator_recipes import INNOCENTS, GeneratorRecipes
from trainprove_nb.lab.generator_scales import generator_scale
from trainprove_nb.lab.generator_trials import (
    STRATEGIES,
    control_trials,
    generator_stages,
    generator_trials,
    separation,
    shadow_trials,
)
from trainprove_nb.lab.store import recipe_name, seed_of

# Scales

NAMES = {
    "scale": (lambda: generator_scale("huge"), "'huge'", "smoke, mini, gpu, paper", "choose"),
    "knob": (lambda: generator_scale("mini", stepz=3), "'stepz'", "suspects", "choose"),
    "source": (
        lambda: GeneratorRecipes(generator_scale("mini")).sources(["mini-v3"]),
        "'mini-v3'",
        "mini-v1-avatars",
        "choose",
    ),
    "source, not in a list": (
        lambda: GeneratorRecipes(generator_scale("mini")).sources("mini-v3"),
        "'mini-v3'",
        "mini-v1-avatars",
    ),
}


@pytest.mark.parametrize("name", NAMES)
def test_unknown_name(name):
    refused(*NAMES[name])


KNOBS = {
    "rhos": ([0, 1.5], "rho = 1.5", "give"),
    "overlap": (2, "2", "give"),
    "mined": (151, "151", "150", "ask for 1 to"),
    "suspects": (0, "suspects = 0", "at least 1"),
    "pairs": (-3, "pairs = -3", "at least 1"),
    "calibration": ("two", "calibration = 'two'"),
    "train": (300.5, "train = 300.5"),
    "source_training": ({"step": 3}, "source_training", "'step'", "steps"),
    "suspect_training": ({"lr": 0.1, "steps_": 3}, "suspect_training", "'steps_'", "steps"),
    "sampling": ({"guide": 2}, "sampling", "'guide'", "guidance"),
    "mixed_precision": ("fp8", "mixed_precision", "'fp8'", "bf16"),
}


@pytest.mark.parametrize("knob", KNOBS)
def test_knob_out_of_range(knob):
    value, *says = KNOBS[knob]
    refused(lambda: generator_scale("mini", **{knob: value}), *says)


def test_rhos_that_are_no_list():
    refused(lambda: generator_scale("mini", rhos=0.5), "rhos = 0.5", "list")


@pytest.mark.parametrize(
    "knobs, says",
    [
        (dict(bases=[3]), "bases names 3"),
        (dict(sampling={"size": 64}), "no 'size'"),
        (dict(prompt_search={"objective": "luck"}), "objective 'luck'"),
        (dict(suspect_training={"schedule": "cosin"}), "schedule 'cosin'"),
        (dict(suspect_training={"steps": 0}), "steps = 0"),
        (dict(source_training={"lr": -1.0}), "lr = -1"),
        (dict(suspect_training={"velocity_loss": 1}), "velocity_loss = 1"),
        (dict(sampling={"batch_size": 2.5}), "batch_size = 2.5"),
        (dict(strength=0), "strength = 0"),
    ],
)
def test_settings_that_would_be_ignored_or_break_later(knobs, says):
    refused(lambda: generator_scale("mini", knobs), says, "give|choose")


def whole(most, least=1):
    return f"give a whole number of at least {least} and at most {most}"


NAN, INF, HUGE = float("nan"), float("inf"), 10**9
LR = "give a number above 0 and at most 10"
NORM = "give a number above 0 and at most 1,000,000"
EMA = "give a share of at least 0 and below 1"
GUIDANCE = "give a number of at least 0 and at most 100"


@pytest.mark.parametrize(
    "name, value, advice",
    [
        *[(name, True, whole("10,000")) for name in ("suspects", "calibration", "shadows")],
        *[(name, HUGE, whole("10,000")) for name in ("suspects", "calibration", "shadows")],
        *[(name, True, whole("1,000,000")) for name in ("mined", "train", "pairs")],
        *[(name, HUGE, whole("1,000,000")) for name in ("mined", "train", "pairs")],
        *[("repeats", value, whole("1,000")) for value in (True, 10**6)],
        *[("threads", value, whole("1,024")) for value in (True, HUGE)],
        *[("size", value, whole("4,096")) for value in (0, True, 10**6)],
    ],
)
def test_a_knob_that_is_no_number_or_too_large(name, value, advice):
    says_exactly(lambda: generator_scale("mini", {name: value}), f"{name} = {value}: {advice}")


@pytest.mark.parametrize(
    "name, setting, value, advice",
    [
        ("source_training", "dropout", 2, "give a share of at least 0 and at most 1"),
        *[("source_training", "ema", value, EMA) for value in (1, 2)],
        *[("source_training", "lr", value, LR) for value in (NAN, INF, 0)],
        *[("source_training", "max_norm", value, NORM) for value in (NAN, 0)],
        ("source_training", "steps", HUGE, whole("1,000,000")),
        *[("sampling", "guidance", value, GUIDANCE) for value in (NAN, INF)],
        ("sampling", "batch_size", HUGE, whole("100,000")),
        ("prompt_search", "lr", NAN, LR),
        ("prompt_search", "draws", HUGE, whole("10,000")),
    ],
)
def test_a_setting_that_is_no_number_or_too_large(name, setting, value, advice):
    knobs = {name: {setting: value}}
    says_exactly(lambda: generator_scale("mini", knobs), f"{name}: {setting} = {value}: {advice}")


@pytest.mark.parametrize(
    "knobs, message",
    [
        (
            {"bases": ["mini-v1", "mini-v1"]},
            "bases has twice 'mini-v1': give a list (at least 1, each once) of texts",
        ),
        ({"bases": [""]}, "bases names '': give a list (at least 1, each once) of texts"),
        (
            {"corpora": ["emoji", "emoji"]},
            "corpora has twice 'emoji': give a list (at least 2, each once) of texts",
        ),
        (
            {"trained": {"a": [1, 2]}},
            "trained: a has 1: give [folder of the model, dataset folder that it was trained on]",
        ),
        ({"trained": {1: ["a", "b"]}}, "trained names 1: give texts as names"),
        (
            {"source_training": {"lr": "1e-3"}},
            f"source_training: lr = '1e-3': {LR} "
            "(this is a text: YAML reads 0.001 as a number, 1e-3 as a text)",
        ),
    ],
    ids=str,
)
def test_a_knob_that_names_what_it_may_not(knobs, message):
    says_exactly(lambda: generator_scale("mini", knobs), message)


@pytest.mark.parametrize("scale", [generator_scale, classifier_scale])
def test_knobs_are_a_mapping_and_a_scale_has_a_name(scale):
    says_exactly(
        lambda: scale("mini", 3),
        "knobs = 3: give a mapping of names to values, as in {suspects: 3}",
    )
    says_exactly(
        lambda: scale(["mini"]), "unknown scale ['mini']: choose from smoke, mini, gpu, paper"
    )
    assert scale("mini", None) == scale("mini") == scale("mini", {})


def test_a_knob_turned_twice():
    refused(
        lambda: generator_scale("mini", {"suspects": 3}, suspects=4),
        "suspects is given twice",
        "once",
    )


# Recipes


def test_the_lab_samples_every_role_with_its_own_seeds():
    recipes = GeneratorRecipes(generator_scale("mini"))
    roles = []
    for source in recipes.sources():
        for mining in (recipes.reproduction(source, s) for s in ("detection", "generation")):
            roles += [
                (*mining["role"], k, i)
                for k in range(mining["repeats"])
                for i in range(recipes.scale.train)
            ]
        roles += [
            (*recipes.generated(source, k, use)["role"], i)
            for use in ("suspect", "shadow")
            for k in range(recipes.scale.suspects)
            for i in range(recipes.scale.pairs)
        ]
        roles += [
            (*recipes.answers(recipes.base(source.base), source, s)["role"], i)
            for s in STRATEGIES
            for i in range(recipes.scale.mined)
        ]
        roles += [
            (*recipes.source_answers(source, s, r)["role"], i)
            for s in STRATEGIES
            for r in range(recipes.scale.repeats)
            for i in range(recipes.scale.mined)
        ]
    assert len(roles) > 10_000 and len({seed_of(*r) for r in roles}) == len(set(roles)) == len(
        roles
    )


def test_the_same_rho_written_differently_is_the_same_recipe():
    one, other = (
        GeneratorRecipes(generator_scale("mini", rhos=rhos)) for rhos in ([0, 1], [0.0, 1.0])
    )
    source = one.sources(["mini-v1-avatars"])[0]
    assert (
        one.suspect(source, one.scale.rhos[1], 0)
        == other.suspect(source, other.scale.rhos[1], 0)
        == one.suspect(source, 1, 0)
    )


def test_a_rho_given_twice_is_one_point():
    once, twice = (
        GeneratorRecipes(generator_scale("smoke", rhos=rhos))
        for rhos in ([0, 0.5, 1], [0, 0.5, 0.5, 1, 1.0])
    )
    source = once.sources(["mini-v1-avatars"])[0]
    assert len(generator_trials(twice, source)) == len(generator_trials(once, source))


def test_one_corpus_leaves_no_other_for_the_innocents():
    def plan():
        recipes = GeneratorRecipes(generator_scale("smoke", corpora=["avatars"]))
        return [generator_trials(recipes, source) for source in recipes.sources()]

    refused(plan, "corpora", "avatars", "two|2|another")


def test_two_sources_of_one_name():
    refused(
        lambda: GeneratorRecipes(
            generator_scale(
                "mini",
                bases=["models/base", "models/base-photos"],
                corpora=["data/photos", "data/other"],
            )
        ),
        "'base-photos'",
        "rename",
    )


def leaves(recipe, kind):
    "All recipes of a kind that a recipe is made of."
    if isinstance(recipe, dict):
        if recipe.get("kind") == kind:
            yield recipe
        for part in recipe.values():
            yield from leaves(part, kind)
    elif isinstance(recipe, (list, tuple)):
        for part in recipe:
            yield from leaves(part, kind)


def test_only_the_mark_differs_between_marked_and_plain():
    recipes = GeneratorRecipes(generator_scale("mini"))
    x = recipes.sources()[2]
    plain, marked = (recipes.suspect(x, 0.5, 0, watermarked=m) for m in (False, True))
    assert (
        marked["pairs"]["generated"]["generated"] == plain["pairs"]["generated"]
        and marked["training"] == plain["training"]
    )


# Trials


def test_shadows_and_suspects_share_no_model_seed_or_generation():
    recipes = GeneratorRecipes(generator_scale("mini", shadows=3))
    for x in recipes.sources():
        shadows = shadow_trials(recipes, x)
        judged = [t for t in generator_trials(recipes, x) if t.kind != "calibration"]
        assert [t.kind for t in shadows] == ["infringing"] * 3 + [
            k for k in INNOCENTS for _ in range(3)
        ]
        assert not {recipe_name(t.model) for t in shadows} & {recipe_name(t.model) for t in judged}
        seeds = [t.model["training"]["seed"] for t in shadows]
        assert not set(seeds) & {t.model["training"]["seed"] for t in judged}
        data = {
            recipe_name(t.model["pairs"]["generated"]) for t in judged if t.kind == "infringing"
        }
        assert not data & {
            recipe_name(t.model["pairs"]["generated"]) for t in shadows if t.kind == "infringing"
        }


def test_real_pictures_come_first():
    "What a user's dataset is too small for is found out before anything is trained."
    recipes = GeneratorRecipes(generator_scale("mini", shadows=3))
    for x in recipes.sources():
        first = {recipe_name(r) for r in generator_stages(recipes, [x])["data"]}
        models = [t.model for t in generator_trials(recipes, x) + shadow_trials(recipes, x)]
        assert {recipe_name(r) for r in leaves(models, "pairs")} <= first, x.name


def test_generations_are_made_for_as_many_accounts_as_asked():
    recipes = GeneratorRecipes(generator_scale("mini", suspects=3))
    x = recipes.sources()[:1]
    assert [
        len(generator_stages(recipes, x, logs=n).get("generations", [])) for n in (None, 0, 2)
    ] == [3, 0, 2]


def test_controls_differ_from_infringers_in_whose_generations_they_got():
    recipes = GeneratorRecipes(generator_scale("mini", shadows=3))
    x = recipes.sources(["mini-v1-avatars"])[0]
    (other,) = [y for y in recipes.sources() if y.corpus == x.corpus and y.base != x.base]
    controls, shadows = control_trials(recipes, x), control_trials(recipes, x, use="shadow")
    assert [t.kind for t in controls] == ["another's data"] * 2 and len(shadows) == 3
    for t in controls + shadows:
        assert t.model["start"] == recipes.base(x.base) and t.model["pairs"]["generated"][
            "model"
        ] == recipes.source(other)
    assert not {recipe_name(t.model["pairs"]["generated"]) for t in controls} & {
        recipe_name(t.model["pairs"]["generated"]) for t in shadows
    }
    assert control_trials(recipes, recipes.sources(["mini-v1"])[0]) == []


def test_separation_is_within_sources():
    "Two sources at different levels: pooled, their scores overlap."
    rows = [
        dict(
            source=x,
            strategy="detection",
            kind=kind,
            rho=rho,
            conf=level + guilt + 0.01 * k,
            conf_calibrated=0.0,
            mean_distance=1 - level - guilt - 0.01 * k,
            contrast_calibrated=0.01 * k,
        )
        for x, level in (("a", 0.1), ("b", 0.5))
        for kind, rho, guilt in (("infringing", 1.0, 0.2), ("disjoint data", 0.0, 0.0))
        for k in range(3)
    ]
    found = separation(pd.DataFrame(rows)).set_index("score")
    assert found.auc.to_dict() == {
        "conf": 1,
        "conf_calibrated": 0.5,
        "mean_distance": 1,
        "contrast_calibrated": 0.5,
    }
    assert (found.n_innocent == 6).all() and (found.n_infringing == 6).all()


def test_rates_agree_with_sklearn():
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        dict(
            source="a",
            kind=["infringing"] * 20 + ["same data"] * 30,
            score=np.r_[rng.uniform(0.2, 1, 20), rng.uniform(0, 0.8, 30)],
        )
    )
    y, found = table.kind == "infringing", rates(table)
    assert found["accuracy"].value == accuracy_score(y, table.score >= 0.5)
    assert found["AUC"].value == pytest.approx(roc_auc_score(y, table.score))
    assert str(found.pop("TPR@1%FPR")) == "not estimable"  # of thirty innocents
    assert all(low <= v <= high for v, low, high in found.values())
    fpr, tpr, _ = roc_curve(y, table.score, drop_intermediate=False)
    # of thirty innocents two may be above: with one more of their kind, three of 31
    assert found["TPR@10%FPR"].value == tpr[fpr <= 2 / 30].max()
    # the same models before two sources: Newcombe's formula for two halves is not quite that for
    # one whole, and the bootstrap draws other numbers
    twice = pd.concat([table.assign(model=range(50), source=x) for x in "ab"])
    for name, value in list(rates(twice).items())[:-1]:
        near = {"accuracy": 1e-9, "AUC": 0.005}.get(name, 0.06)
        assert tuple(value) == pytest.approx(tuple(found[name]), abs=near), name
