"Contrast, release test, prompts, discriminators, watermark: against references, by hand, and bad input."

import re

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from sklearn.metrics import accuracy_score, roc_auc_score, roc_curve

from trainprove_nb.attribution.contrast import contrast
from trainprove_nb.attribution.discriminator import (
    DISCRIMINATORS,
    discriminator,
    examples,
    suspicion,
    train_discriminator,
)
from trainprove_nb.attribution.prompts import (
    OBJECTIVES,
    nearest,
    optimise_prompts,
    reading,
    whole_words,
)
from trainprove_nb.attribution.watermark import (
    bit_accuracy,
    carriers,
    detected,
    draw_message,
    embed,
    read,
    watermark_pvalue,
)
from trainprove_nb.data.corpora import corpus
from trainprove_nb.data.distance import distance
from trainprove_nb.data.pairs import pixels
from trainprove_nb.evidence.release import release_test
from trainprove_nb.lab.discriminator_trials import rates
from trainprove_nb.lab.generator_recipes import INNOCENTS, GeneratorRecipes
from trainprove_nb.lab.generator_scales import generator_scale
from trainprove_nb.lab.generator_trials import (
    control_trials,
    generator_stages,
    generator_trials,
    separation,
    shadow_trials,
)
from trainprove_nb.lab.store import recipe_name
from trainprove_nb.models.encoding import tokens
from trainprove_nb.models.pipelines import load_model


def pictures(n, side=32, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def refused(call, *says):
    with pytest.raises((ValueError, FileNotFoundError, ImportError)) as e:
        call()
    for pattern in says:
        assert re.search(pattern, str(e.value)), str(e.value)
    assert "\n" not in str(e.value)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# contrast


def test_contrast_by_hand():
    assert contrast([0.3, 0.5], [[0.1, 0.2], [0.3, 0.4]]) == pytest.approx(
        ((0.3 - 0.2) + (0.5 - 0.3)) / 2
    )
    assert contrast([0.3, 0.5], [0.3, 0.5]) == 0


def test_contrast_of_shapes_that_do_not_fit():
    refused(lambda: contrast([0.1, 0.2], [[0.1, 0.2, 0.3]]), "2 keys", r"\(1, 3\)")


@pytest.mark.parametrize("n", [5, 8, 12])
def test_release_test_is_the_exact_sign_flip(n):
    a, b = np.random.default_rng(n).normal(size=(2, n))
    flips = (np.array(np.meshgrid(*[[1, -1]] * n)).reshape(n, -1).T * (b - a)).mean(1)
    advantage, p = release_test(a, b)
    assert advantage == pytest.approx((b - a).mean()) and p == pytest.approx(
        (flips >= (b - a).mean() - 1e-12).mean()
    )


def test_release_test_keeps_its_false_positive_rate():
    "600 innocents: the share at or below .05 lies where a binomial with that rate would, 999 times of 1,000."
    rng = np.random.default_rng(0)
    ps = [release_test(*rng.gamma(2, size=(2, 15)), resamples=199, seed=k)[1] for k in range(600)]
    assert np.mean(np.array(ps) <= 0.05) <= scipy.stats.binom.isf(0.001, 600, 0.05) / 600


def test_release_test_finds_an_advantage():
    rng = np.random.default_rng(0)
    a = rng.normal(size=40)
    assert (
        release_test(a, a + 0.3 + 0.1 * rng.normal(size=40))[1]
        < 0.001
        < 0.9
        < release_test(a + 0.3, a)[1]
    )


def test_release_test_of_too_little():
    refused(lambda: release_test([1, 2, 3, 4], [1, 2, 3, 4]), "4 prompts", "at least 5")
    refused(lambda: release_test([1] * 6, [1] * 7), r"released \(6,\) and withheld \(7,\)")


# distances by networks


class Flat(torch.nn.Module):
    def forward(self, x):
        return torch.nn.functional.pad(
            torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1), [0, 500]
        )  # as many numbers as SSCD's, of which 12 count


class Classes(torch.nn.Module):
    "A network that sorts into ten classes."

    def forward(self, x):
        return x.flatten(1)[:, :10]


class Two(torch.nn.Module):
    "A network of two answers."

    def forward(self, x):
        return x.flatten(1)[:, :512], x


def test_sscd_is_one_minus_cosine_of_descriptors(tmp_path):
    torch.jit.script(Flat()).save(str(tmp_path / "flat.pt"))
    x, y = pictures(5), pictures(5, seed=1)
    mean, sd = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])

    def describe(p):
        return (
            ((p / 255 - mean) / sd)
            .reshape(5, 2, 16, 2, 16, 3)
            .mean((2, 4))
            .transpose(0, 3, 1, 2)
            .reshape(5, -1)
        )

    a, b = describe(x), describe(y)
    expected = 1 - (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    np.testing.assert_allclose(
        distance(f"sscd:{tmp_path}/flat.pt")(x, y), expected, atol=0.02
    )  # enlarged to 320 pixels: nearly the same means


def test_network_files_that_are_missing_or_wrong(tmp_path):
    refused(lambda: distance(f"sscd:{tmp_path}/no.pt"), "no.pt is not there", "download")
    (tmp_path / "text.pt").write_text("not a network")
    refused(lambda: distance(f"sscd:{tmp_path}/text.pt"), "text.pt is not a TorchScript network")
    refused(lambda: distance(f"lpips:{tmp_path}/no.pth"), "pip install|no.pth is not there")
    for name, net in (("classes", Classes()), ("two", Two())):
        torch.jit.script(net).save(f"{tmp_path}/{name}.pt")
        refused(
            lambda: distance(f"sscd:{tmp_path}/{name}.pt"), f"{name}.pt is no SSCD network", "512"
        )
    for name in ("tile_max:8", "rms:foo"):
        refused(lambda: distance(name), name, "takes no file")


# prompts


@pytest.fixture(scope="module")
def pipe():
    return load_model("mini-v2")


def test_embeddings_of_the_table_read_like_the_tokens(pipe):
    ids = tokens(pipe, ["a person with red hair", "a cat"])
    with torch.no_grad():
        expected = pipe.text_encoder(ids)[0]
        with reading(pipe.text_encoder, pipe.text_encoder.get_input_embeddings().weight[ids]):
            found = pipe.text_encoder(torch.zeros_like(ids))[0]
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(
            pipe.text_encoder(ids)[0], expected
        )  # afterwards it reads tokens again


def test_nearest_of_a_row_is_its_token(pipe):
    table, words = (
        pipe.text_encoder.get_input_embeddings().weight.detach(),
        whole_words(pipe.tokenizer),
    )
    assert (nearest(table[words], table, words) == words).all()


def test_words_survive_being_written(pipe):
    words = whole_words(pipe.tokenizer)
    written = " ".join(pipe.tokenizer.decode([i]).strip() for i in words[:20])
    assert pipe.tokenizer(written, add_special_tokens=False).input_ids == words[:20].tolist()


@pytest.mark.parametrize("objective", ["denoising", "sampling"])
def test_prompts_never_do_worse_and_weights_stay(pipe, objective):
    before = {k: v.clone() for k, v in pipe.unet.state_dict().items()}
    found = optimise_prompts(
        pipe, corpus("avatars", "source", 4), steps=12, draws=2, objective=objective
    )
    assert (
        len(found["text"]) == 4 and [len(c) for c in found["course"]] == [3] * 4
    )  # at the start, after 10 steps, and at the end
    assert all(a >= b for c in found["course"] for a, b in zip(c, c[1:]))
    for before_, after, course in zip(found["before"], found["after"], found["course"]):
        assert (before_ == after) == (
            course[0] == course[-1]
        )  # measured on other draws, but of the same words
    assert all(torch.equal(v, pipe.unet.state_dict()[k]) for k, v in before.items()) and all(
        p.requires_grad for p in pipe.unet.parameters()
    )


def test_same_seed_gives_the_same_prompts(pipe):
    train = corpus("avatars", "source", 3)
    assert optimise_prompts(pipe, train, steps=10, draws=1, seed=1) == optimise_prompts(
        pipe, train, steps=10, draws=1, seed=1
    )


def test_whatever_happens_weights_can_be_trained_afterwards(pipe, monkeypatch):
    def stops(*_):
        raise KeyboardInterrupt

    monkeypatch.setitem(OBJECTIVES, "denoising", stops)
    with pytest.raises(KeyboardInterrupt):
        optimise_prompts(pipe, corpus("avatars", "source", 2), steps=1, draws=1)
    assert all(
        p.requires_grad for part in (pipe.unet, pipe.text_encoder) for p in part.parameters()
    )
    refused(
        lambda: optimise_prompts(pipe, corpus("avatars", "source", 2), mixed_precision="fp8"),
        "'fp8'",
        "no, fp16, bf16",
    )


def test_a_file_that_is_not_alexnets(tmp_path, monkeypatch):
    import sys
    import types

    monkeypatch.setitem(
        sys.modules, "lpips", types.SimpleNamespace(LPIPS=lambda **_: torch.nn.Module())
    )
    (tmp_path / "broken.pth").write_bytes(b"not weights")
    refused(lambda: distance(f"lpips:{tmp_path}/broken.pth"), "not AlexNet's weights", "download")


def test_unknown_objective(pipe):
    refused(
        lambda: optimise_prompts(pipe, corpus("avatars", "source", 2), objective="luck"),
        "'luck'",
        "denoising, sampling",
    )


# discriminators


def shown(kind, n=12, seed=0):
    "Examples of a model that answers with the source's picture (1) or any other (0)."
    keys, own, other = (pictures(n, seed=10 * seed + k) for k in range(3))
    return examples(own if kind else other, keys, own)


@pytest.mark.parametrize("name", ["distances"])
def test_discriminator_tells_copies_from_others(name):
    trained = train_discriminator(
        discriminator(name), [shown(0, seed=k) for k in (1, 2)], [shown(1, seed=k) for k in (3, 4)]
    )
    assert suspicion(trained, shown(1, seed=5)) > 0.9 > 0.1 > suspicion(trained, shown(0, seed=6))


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_discriminator_scores_are_rates_and_repeat(name):
    light, dark = [
        np.clip(shown(0, seed=k).astype(int) + s, 0, 255).astype(np.uint8)
        for k, s in ((1, 90), (2, -90))
    ]
    scores = []
    for _ in range(2):
        trained = train_discriminator(discriminator(name), [light] * 4, [dark] * 4)
        scores.append((suspicion(trained, light), suspicion(trained, dark)))
    assert scores[0] == scores[1] and all(0 <= s <= 1 for s in scores[0])
    if name != "distances":
        assert scores[0][1] > scores[0][0]  # brightness is not a distance


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_discriminator_asked_before_it_is_trained(name):
    refused(lambda: suspicion(discriminator(name), shown(0)), "not trained", "train_discriminator")


def test_shadows_of_one_class_only():
    refused(
        lambda: train_discriminator(discriminator("distances"), [shown(0)], []),
        "1 innocent and 0 infringing",
        "at least one",
    )
    refused(lambda: discriminator("oracle"), "'oracle'", "images, features, distances")
    refused(
        lambda: examples(pictures(3), pictures(4), pictures(3)),
        r"\(3, 32, 32, 3\)",
        r"\(4, 32, 32, 3\)",
    )


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
    assert found["accuracy"][0] == accuracy_score(y, table.score >= 0.5) and found["AUC"][
        0
    ] == pytest.approx(roc_auc_score(y, table.score))
    assert all(low <= v <= high for v, low, high in found.values())
    fpr, tpr, _ = roc_curve(y, table.score, drop_intermediate=False)
    for rate in (0.1, 0.01):
        assert found[f"TPR@{rate:.0%}FPR"][0] == tpr[fpr <= rate].max()
    twice = pd.concat(
        [table.assign(model=range(50), source=x) for x in "ab"]
    )  # the same models before two sources
    for name, value in rates(twice).items():
        near = {"accuracy": 1e-9, "AUC": 0.005}.get(
            name, 0.06
        )  # Newcombe's formula for two halves is not quite that for one whole; the bootstrap draws other numbers
        assert value == pytest.approx(found[name], abs=near), name


# roles


def test_shadows_and_suspects_share_no_model_seed_or_generation():
    recipes = GeneratorRecipes(generator_scale("mini", shadows=3))
    for x in recipes.sources():
        shadows, judged = (
            shadow_trials(recipes, x),
            [t for t in generator_trials(recipes, x) if t.kind != "calibration"],
        )
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


def test_only_the_mark_differs_between_marked_and_plain():
    recipes = GeneratorRecipes(generator_scale("mini"))
    x = recipes.sources()[2]
    plain, marked = (recipes.suspect(x, 0.5, 0, watermarked=m) for m in (False, True))
    assert (
        marked["pairs"]["generated"]["generated"] == plain["pairs"]["generated"]
        and marked["training"] == plain["training"]
    )


# watermark


def test_binomial_by_hand():
    message = draw_message(3)
    logits = np.where(message, 1.0, -1.0)[None].repeat(2, 0)
    logits[:, :10] *= -1  # 22 of 32 agree
    expected = sum(scipy.special.comb(32, k, exact=True) for k in range(22, 33)) / 2**32
    assert (
        watermark_pvalue(logits, message) == pytest.approx(expected)
        and bit_accuracy(logits, message) == 22 / 32
    )
    assert detected(logits, message, 0.05).all() and not detected(logits, message, 0.02).any()


def test_joint_message_keeps_its_false_positive_rate_however_a_decoder_leans():
    "A decoder that says nearly the same for every picture: per-picture votes are anything but independent."
    rng = np.random.default_rng(0)
    leaning = rng.normal(size=32) * 5 + rng.normal(size=(50, 32))
    ps = np.array([watermark_pvalue(leaning, draw_message(k)) for k in range(2000)])
    for level in (0.01, 0.05):
        assert (ps <= level).mean() <= scipy.stats.binom.isf(0.001, 2000, level) / 2000


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("bits", [8, 32])
def test_a_mark_is_as_strong_as_asked_and_comes_back(size, bits):
    grey, message = np.full((3, size, size, 3), 128, np.uint8), draw_message(0, bits)
    marked = embed(grey, message, seed=5, strength=0.05)
    assert np.sqrt((((marked - 128.0) / 255) ** 2).mean()) == pytest.approx(0.05, rel=0.02)
    found = read(marked, 5, bits, reference=grey)
    np.testing.assert_allclose(
        found, np.where(message, 1, -1) * np.ones((3, 1)) * 0.05 / np.sqrt(bits), rtol=0.05
    )
    other = read(marked, 6, bits, reference=grey)  # without the secret it is not there
    assert abs(other).max() < 0.05 and (other > 0).mean() < 1


def test_carriers_do_not_disturb_each_other():
    x = carriers(3, 32, 48, 32)
    np.testing.assert_allclose(x @ x.T / x.shape[1], np.eye(32), atol=1e-12)


def test_mark_is_found_in_many_real_pictures():
    x, others, message = (
        pixels(corpus("avatars", "evaluation", 60)),
        pixels(corpus("avatars", "calibration", 60)),
        draw_message(0),
    )
    assert watermark_pvalue(read(embed(x, message, 1), 1, reference=others), message) < 1e-6
    unmarked = read(x, 1, reference=others)
    ps = [watermark_pvalue(unmarked, draw_message(k)) for k in range(1000)]
    assert np.mean(np.array(ps) <= 0.05) <= scipy.stats.binom.isf(0.001, 1000, 0.05) / 1000


def test_watermark_that_does_not_fit():
    refused(lambda: carriers(0, 8, 8), "8×8", "at least 9×9")
    refused(lambda: carriers(0, 32, 32, 200), "200 bits", "from 1 to 117")
    refused(lambda: watermark_pvalue(np.zeros((3, 32)), draw_message(0, 16)), "32 bits", "16")
