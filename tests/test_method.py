"The method's numbers, against references written here and cases worked out by hand."

import itertools
import json
import random
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
import scipy.ndimage
import scipy.stats
import torch
from datasets import Dataset, DatasetDict
from diffusers import DDPMScheduler
from PIL import Image

from trainprove_nb.attribution.conf import calibrate_delta0, conf, first
from trainprove_nb.attribution.keys import detection_keys, random_keys, reproduction
from trainprove_nb.data import avatars, corpora, folders, scenes
from trainprove_nb.data import pairs as pair_sets
from trainprove_nb.data.distance import distance
from trainprove_nb.data.mix import mix
from trainprove_nb.evidence import rates as evidence
from trainprove_nb.lab.generator_recipes import GeneratorRecipes
from trainprove_nb.lab.generator_scales import generator_scale
from trainprove_nb.lab.generator_trials import STRATEGIES, generator_trials
from trainprove_nb.lab.makers import SHARES, own_split
from trainprove_nb.lab.store import DamagedArtifact, Store, recipe_name, seed_of
from trainprove_nb.models.encoding import encode_texts
from trainprove_nb.models.finetune import finetune, step_generator, target_of
from trainprove_nb.models.pipelines import load_model
from trainprove_nb.models.sampling import generate
from trainprove_nb.report.figures import pooled_intervals


def pictures(n, side=8, seed=0):
    "Noise pictures, uint8 (n, side, side, 3)."
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


# data


def test_splits_share_no_place():
    places = [k for split in corpora.SPLITS.values() for k in split]
    assert len(places) == len(set(places))


# A scene's wording is said, not drawn; hair colour does not show on somebody with neither hair nor beard
DRAWN = {
    "avatars": lambda s: s[:1] + s[2:] if s[0] == "no" and s[3] == "no beard" else s,
    "emoji": lambda s: s[:4] + s[5:],
}


@pytest.mark.parametrize("name", corpora.CORPORA)
def test_no_picture_is_in_two_splits(name):
    specs, home = corpora._specs(name, max(r.stop for r in corpora.SPLITS.values())), {}
    for split, places in corpora.SPLITS.items():
        for k in places:
            home.setdefault(DRAWN[name](specs[k]), set()).add(split)
    shared = [sorted(splits) for splits in home.values() if len(splits) > 1]
    assert shared == [], f"{len(shared)} drawings are in several splits"


@pytest.mark.parametrize("name", corpora.CORPORA)
def test_drawn_splits_share_no_bytes(name):
    drawn = [i.tobytes() for split in corpora.SPLITS for i in corpora.corpus(name, split, 12)["image"]]
    assert len(drawn) == len(set(drawn)) == 12 * len(corpora.SPLITS)


def test_a_longer_sample_begins_with_the_shorter():
    short, long = corpora.corpus("emoji", "source", 3), corpora.corpus("emoji", "source", 6)
    assert (
        short["text"] == long["text"][:3]
        and (pair_sets.pixels(short) == pair_sets.pixels(long)[:3]).all()
    )


def test_avatar_captions_name_the_five_attributes():
    meanings = {}
    for five in itertools.product(
        avatars.HAIR, avatars.HAIR_COLOUR, avatars.GLASSES, avatars.BEARD, avatars.MOUTH
    ):
        caption = avatars.avatar_caption(five + ("uncaptioned",) * 5)
        hair, colour, *rest = five
        assert "no hair" in caption if hair == "no" else f"{colour} " in caption and hair in caption
        assert all(word in caption for word in rest) and "uncaptioned" not in caption
        meanings.setdefault(caption, set()).add(five[2:] if hair == "no" else five)
    assert all(len(m) == 1 for m in meanings.values())  # a caption means one thing only


def test_scene_captions_name_subject_size_and_outer_colour():
    rng = random.Random(0)
    for spec in (scenes.scene_spec(rng) for _ in range(500)):
        caption, (subject, style, size, outer, wording, *hidden) = scenes.scene_caption(spec), spec
        assert caption.endswith(f"a {size} {subject} on {outer}") and (style in caption) == (
            "style" in wording
        )


def write_imagefolder(folder, images, texts):
    with open(folder / "metadata.jsonl", "w") as f:
        for k, (image, text) in enumerate(zip(images, texts)):
            Image.fromarray(image).save(folder / f"{k}.png")
            f.write(json.dumps({"file_name": f"{k}.png", "text": text}) + "\n")


WRITERS = {
    "imagefolder": write_imagefolder,
    "saved dataset": lambda folder, images, texts: pair_sets.pairs(
        list(images), texts
    ).save_to_disk(folder / "saved"),
    "saved splits": lambda folder, images, texts: DatasetDict(
        train=pair_sets.pairs(list(images), texts)
    ).save_to_disk(folder / "saved"),
    "parquet": lambda folder, images, texts: pair_sets.pairs(list(images), texts).to_parquet(
        folder / "part.parquet"
    ),
}


@pytest.mark.parametrize("form", WRITERS)
def test_every_form_on_disk_gives_the_same_pixels(tmp_path, form):
    images, texts = pictures(5), [f"picture {k}" for k in range(5)]
    WRITERS[form](tmp_path, images, texts)
    back = folders.read_pairs(tmp_path / "saved" if (tmp_path / "saved").exists() else tmp_path)
    assert back["text"][:] == texts and (pair_sets.pixels(back) == images).all()


def test_crop_is_square_and_central(tmp_path):
    wide = pictures(1, 6)[:, :4]  # 4 high, 6 wide
    write_imagefolder(tmp_path, wide, ["wide"])
    assert (pair_sets.pixels(folders.read_pairs(tmp_path, size=4)) == wide[:, :, 1:5]).all()


# mix


def numbered(word, n):
    return Dataset.from_dict({"text": [f"{word} {k}" for k in range(n)]})


@pytest.mark.parametrize("n", [1, 7, 10, 30, 500])
@pytest.mark.parametrize("rho", [0, 0.05, 0.1, 0.15, 0.29, 0.3, 1 / 3, 0.5, 0.57, 0.7, 0.95, 1])
def test_rho_is_exact_to_the_sample(rho, n):
    mixed = mix(numbered("real", 600), numbered("generated", 600), rho, n)["text"][:]
    generated = sum(t.startswith("generated") for t in mixed)
    assert len(mixed) == n and abs(generated - Fraction(str(rho)) * n) <= Fraction(1, 2)


def test_mix_draws_without_replacement():
    mixed = mix(numbered("real", 20), numbered("generated", 20), 0.5, 40)["text"][:]
    assert sorted(mixed) == sorted(
        [f"{word} {k}" for word in ("real", "generated") for k in range(20)]
    )


def test_mix_is_shuffled_and_repeats_with_its_seed():
    draw = lambda seed: mix(numbered("real", 90), numbered("generated", 90), 0.5, 60, seed)["text"][
        :
    ]
    assert draw(1) == draw(1) and set(draw(1)) != set(draw(2))
    assert len({t.split()[0] for t in draw(1)[:20]}) == 2


# distances


def test_rms_is_the_root_of_the_mean_square():
    x, y = pictures(6), pictures(6, seed=1)
    by_hand = [
        float(
            np.sqrt(sum((int(a) - int(b)) ** 2 for a, b in zip(p.ravel(), q.ravel())) / p.size)
            / 255
        )
        for p, q in zip(x, y)
    ]
    np.testing.assert_allclose(distance("rms")(x, y), by_hand, rtol=1e-5)


@pytest.mark.parametrize("shift, expected", [(0, 0), (51, 0.2), (255, 1)])
@pytest.mark.parametrize("name", ["rms", "tile_max"])
def test_distance_of_an_even_shift_is_the_shift(name, shift, expected):
    x = np.zeros((2, 8, 8, 3), np.uint8)
    np.testing.assert_allclose(distance(name)(x, x + np.uint8(shift)), expected, atol=1e-6)


@pytest.mark.parametrize("tiles", [1, 2, 4, 8])
def test_tile_max_is_the_worst_tile(tiles):
    x, y = pictures(5, 16), pictures(5, 16, seed=1)
    side, expected = 16 // tiles, []
    for p, q in zip(x / 255, y / 255):
        corners = itertools.product(range(0, 16, side), repeat=2)
        expected.append(
            max(np.sqrt(((p - q)[i : i + side, j : j + side] ** 2).mean()) for i, j in corners)
        )
    np.testing.assert_allclose(distance("tile_max")(x, y, tiles=tiles), expected, rtol=1e-5)


def test_tile_max_agrees_with_scipy():
    x, y = pictures(1, 16), pictures(1, 16, seed=1)
    means = scipy.ndimage.uniform_filter(((x / 255.0 - y / 255.0) ** 2).mean(-1)[0], 4)[
        2::4, 2::4
    ]  # the middle of each 4×4 tile
    np.testing.assert_allclose(distance("tile_max")(x, y), np.sqrt(means.max()), rtol=1e-5)


def test_tile_max_is_never_below_rms():
    x, y = pictures(50), pictures(50, seed=1)
    y[:25, :4] = x[:25, :4]
    assert (distance("tile_max")(x, y) >= distance("rms")(x, y) - 1e-6).all()


@pytest.mark.parametrize("name", ["rms", "tile_max"])
def test_distances_are_symmetric_and_zero_for_equals(name):
    d, x, y = distance(name), pictures(9), pictures(9, seed=1)
    assert (d(x, y) == d(y, x)).all() and (d(x, y) > 0).all() and (d(x, x) == 0).all()


@pytest.mark.parametrize("name", ["rms", "tile_max"])
def test_uint8_and_floats_give_the_same_distance(name):
    d, x, y = distance(name), pictures(9), pictures(9, seed=1)
    np.testing.assert_allclose(d(x / 255, (y / 255).astype(np.float32)), d(x, y), rtol=1e-5)
    np.testing.assert_allclose(d(x, y / 255), d(x, y), rtol=1e-5)


# keys


def test_reproduction_is_the_mean_over_repetitions():
    train = pair_sets.pairs(list(np.full((4, 8, 8, 3), 100, np.uint8)), list("abcd"))

    def source(prompts, seeds):
        return np.stack([np.full((8, 8, 3), 100 + s, np.uint8) for s in seeds])

    got = reproduction(source, train, [[0, 10, 20, 51], [0, 20, 0, 51]])
    np.testing.assert_allclose(got, np.array([0, 15, 10, 51]) / 255, atol=1e-6)


def test_detection_keys_are_the_closest_in_order():
    d = np.random.default_rng(0).integers(0, 30, 80) / 100  # with ties
    keys = detection_keys(numbered("pair", 80), d, 25)
    order = sorted(range(80), key=lambda k: (d[k], k))[:25]
    assert keys["index"][:] == order and keys["distance"][:] == [d[k] for k in order]
    assert keys["text"][:] == [f"pair {k}" for k in order]


def test_random_keys_repeat_with_their_seed_whatever_the_distances():
    train, d = numbered("pair", 80), np.arange(80) / 100
    one, again, other = (
        random_keys(train, d, 25, 1),
        random_keys(train, d[::-1], 25, 1),
        random_keys(train, d, 25, 2),
    )
    assert one["index"][:] == again["index"][:] != other["index"][:]
    assert len(set(one["index"])) == 25 and one["text"][:] == [f"pair {k}" for k in one["index"]]


def test_fewer_keys_are_the_first_of_more():
    train, d = numbered("pair", 80), np.random.default_rng(0).random(80)
    for draw in (detection_keys, random_keys):
        assert draw(train, d, 10)["index"][:] == draw(train, d, 40)["index"][:10]


# conf


def test_conf_counts_a_distance_of_exactly_delta0():
    c = conf([0.1, 0.15, np.nextafter(0.15, 1), 0.2], 0.15)
    assert (c.value, c.k, c.N) == (0.5, 2, 4) and float(c) == 0.5


def test_conf_of_N_looks_at_the_first_N():
    assert (
        conf([0.1, 0.1, 0.9, 0.9], 0.15, N=2).value == 1
        and conf([0.1, 0.1, 0.9, 0.9], 0.15).value == 0.5
    )
    assert first([[1, 2, 3], [4, 5, 6]], 2).tolist() == [[1, 2], [4, 5]]


@pytest.mark.parametrize("seed", range(20))
def test_conf_never_falls_as_delta0_grows(seed):
    rng = np.random.default_rng(seed)
    d = rng.random(30).round(2)
    values = [conf(d, t).value for t in np.sort(np.r_[0, rng.random(40).round(2), 1])]
    assert values == sorted(values) and values[-1] == 1


@pytest.mark.parametrize(
    "k, n", [(0, 30), (1, 30), (7, 30), (21, 30), (30, 30), (0, 1), (1, 1), (50, 100)]
)
def test_clopper_pearson_from_beta_quantiles(k, n):
    low = scipy.stats.beta.ppf(0.025, k, n - k + 1) if k else 0
    high = scipy.stats.beta.ppf(0.975, k + 1, n - k) if k < n else 1
    c = conf([0.1] * k + [0.3] * (n - k), 0.15)
    np.testing.assert_allclose([c.low, c.high], [low, high], atol=1e-9)


@pytest.mark.parametrize("fpr", [0.01, 0.05, 0.1, 0.29, 0.5, 0.57])
@pytest.mark.parametrize("digits", [1, 2, 15], ids=["many ties", "some ties", "no ties"])
@pytest.mark.parametrize("n", [3, 60, 100])
def test_calibrated_delta0_is_the_largest_within_the_rate(n, digits, fpr):
    pool = np.random.default_rng(n).uniform(0.1, 1, (n // 3 + 1, 3)).round(digits).ravel()[:n]
    t = calibrate_delta0(pool, fpr)
    share = lambda t: Fraction(int((pool <= t).sum()), n)
    larger = pool[pool > t].min()
    assert share(t) <= Fraction(str(fpr)) < share(larger)
    assert t in pool or share(t) == 0


def test_delta0_of_a_pool_that_holds_zero_can_be_used():
    assert conf([0, 0.1], calibrate_delta0([0, 0, 0.1, 0.2], 0.05)).value == 0


# evidence


def scores(seed, m, n):
    "Scores of m innocents and n infringers, with ties."
    rng = np.random.default_rng(seed)
    return rng.normal(0, 1, m).round(1), rng.normal(0.8, 1, n).round(1)


@pytest.mark.parametrize("m, n", [(1, 1), (2, 5), (12, 9), (60, 60)])
def test_auc_counts_pairs(m, n):
    a, b = scores(m, m, n)
    wins = sum((y > x) + (y == x) / 2 for x in a for y in b)
    assert evidence.auc(a, b).value == pytest.approx(wins / (m * n))


@pytest.mark.parametrize("level", [0.9, 0.95])
@pytest.mark.parametrize("m, n", [(2, 5), (4, 4), (12, 9), (60, 60)])
def test_auc_bounds_solve_newcombes_equation(m, n, level):
    rate, z = evidence.auc(*scores(m, m, n), level), scipy.stats.norm.ppf((1 + level) / 2)
    half = (m + n) / 2 - 1
    assert 0 < rate.value < 1 and rate.low < rate.value < rate.high and rate.n == (m, n)
    for t in (rate.low, rate.high):
        spread = np.sqrt(
            t * (1 - t) / (m * n) * (1 + half * (1 - t) / (2 - t) + half * t / (1 + t))
        )
        assert abs(rate.value - t) == pytest.approx(z * spread, abs=1e-8)


def test_auc_of_perfect_separation_still_has_an_interval():
    few, many = (evidence.auc(np.zeros(n), np.ones(n)) for n in (4, 40))
    assert few.value == few.high == many.high == 1 and 0.3 < few.low < 0.8 < many.low < 1
    t, z = few.low, scipy.stats.norm.ppf(0.975)
    assert 1 - t == pytest.approx(
        z * np.sqrt(t * (1 - t) / 16 * (1 + 3 * (1 - t) / (2 - t) + 3 * t / (1 + t))), abs=1e-8
    )


def test_auc_of_swapped_classes_is_its_mirror_image():
    a, b = scores(3, 8, 5)
    one, other = evidence.auc(a, b), evidence.auc(b, a)
    assert [one.value, one.low, one.high] == pytest.approx(
        [1 - other.value, 1 - other.high, 1 - other.low], abs=1e-8
    )
    assert evidence.auc([1, 1], [0, 0]).low == 0


@pytest.mark.parametrize("fpr", [0, 0.05, 0.1, 1 / 3, 0.5, 1])
@pytest.mark.parametrize("seed", range(6))
def test_tpr_at_fpr_is_the_best_of_all_thresholds(seed, fpr):
    a, b = scores(seed, 3 + 4 * seed, 10)
    caught = max(
        int((b >= t).sum()) for t in [*a, *b, np.inf] if (a >= t).sum() <= fpr * len(a) + 1e-9
    )
    rate = evidence.tpr_at_fpr(a, b, fpr)
    assert rate.value == caught / 10
    low, high = scipy.stats.binomtest(caught, 10).proportion_ci(method="exact")
    assert rate.low == 0 or fpr * len(a) >= 1 - 1e-9
    assert rate.low <= low + 1e-9 and rate.high >= high - 1e-9
    assert fpr < 1 or (rate.low, rate.high) == pytest.approx(
        (low, high)
    )  # no threshold to be uncertain of


def test_tpr_interval_knows_that_few_innocents_set_the_threshold():
    "Five innocents or five thousand of one kind: the same TPR, but not as well known."
    rng = np.random.default_rng(0)
    b = rng.normal(2, 1, 400)
    few, many = (
        evidence.tpr_at_fpr(scipy.stats.norm.ppf(np.linspace(0.5 / n, 1 - 0.5 / n, n)), b, 0.2)
        for n in (5, 5000)
    )
    exact = scipy.stats.binomtest(round(many.value * 400), 400).proportion_ci(method="exact")
    assert many.high - many.low < 1.3 * (exact.high - exact.low) and few.high - few.low > 2 * (
        many.high - many.low
    )


def test_tpr_interval_covers_where_innocents_are_few():
    "Innocents N(0, 1), infringers N(2, 1): at 1% the true rate is .37, and 36 innocents cannot know it."
    rng, true = np.random.default_rng(0), scipy.stats.norm.sf(scipy.stats.norm.isf(0.01) - 2)
    found = [
        evidence.tpr_at_fpr(rng.normal(size=36), rng.normal(2, 1, 48), 0.01) for _ in range(60)
    ]
    assert np.mean([r.low <= true <= r.high for r in found]) >= 0.95


def test_one_more_of_independent_models_is_students_t():
    x = np.array([0.3, 0.31, 0.35, 0.28, 0.33])
    for value in (0.2, 0.3, 0.4):
        alone = scipy.stats.ttest_ind([value], x, alternative="less")
        assert evidence.one_more_pvalue(value, x) == pytest.approx(alone.pvalue)
    with pytest.raises(ValueError, match="1 models that share 0.0"):
        evidence.one_more_pvalue(0.2, [0.3])
    with pytest.raises(ValueError, match="share 1"):
        evidence.one_more_pvalue(0.2, x, 1)


def test_a_stranger_to_models_of_one_pool_is_accused_as_often_as_allowed():
    rng, called = np.random.default_rng(0), np.zeros(2)
    for _ in range(4000):
        known, stranger = (
            rng.normal(size=5) * (2 / 3) ** 0.5 + rng.normal() / 3**0.5,
            rng.normal(),
        )  # a third of the variance in common
        called += [evidence.one_more_pvalue(stranger, known, c) <= 0.05 for c in (0, 1 / 3)]
    naive, ours = called / 4000
    assert ours < 0.062 < naive


def test_auc_within_compares_models_of_one_source_only():
    "Two sources at different levels: pooled they overlap, within each all are told apart."
    innocent = pd.DataFrame(dict(source=["a"] * 3 + ["b"] * 3, score=[0.0, 0.1, 0.2, 5, 5.1, 5.2]))
    guilty = pd.DataFrame(dict(source=["a"] * 3 + ["b"] * 3, score=[1.0, 1.1, 1.2, 6, 6.1, 6.2]))
    assert (
        evidence.auc(innocent.score, guilty.score).value == 0.75
        and evidence.auc_within(innocent, guilty, "score").value == 1
    )
    one = innocent[innocent.source == "a"], guilty[guilty.source == "a"]
    assert evidence.auc_within(*one, "score") == evidence.auc(one[0].score, one[1].score)
    both, single = (
        evidence.auc_within(innocent, guilty, "score"),
        evidence.auc(one[0].score, one[1].score),
    )
    assert both.low > single.low and both.n == (6, 6)
    with pytest.raises(ValueError, match="0 innocent"):
        evidence.auc_within(innocent.assign(source="c"), guilty, "score")


def test_tpr_at_fpr_keeps_thresholds_on_a_straight_stretch_of_the_curve():
    assert [
        evidence.tpr_at_fpr([1, 2, 3, 4], [1, 2, 3, 4], fpr).value
        for fpr in (0.24, 0.25, 0.5, 0.75)
    ] == [0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize("level", [0.8, 0.95])
@pytest.mark.parametrize("n", [2, 3, 30])
def test_mean_interval_is_students(n, level):
    values = np.random.default_rng(n).random(n)
    mean, low, high = evidence.mean_interval(values, level)
    assert mean == pytest.approx(values.mean())
    assert (low, high) == pytest.approx(
        scipy.stats.t.interval(level, n - 1, values.mean(), scipy.stats.sem(values))
    )


def test_mean_of_one_value_has_no_interval():
    mean, low, high = evidence.mean_interval([0.3])
    assert mean == 0.3 and np.isnan(low) and np.isnan(high)


def test_pooled_intervals_are_the_analysis_of_variance():
    values, groups = [1.0, 2, 3, 5, 4, 9], ["a", "a", "b", "b", "b", "c"]
    # by hand: squares within are .5 (a), 2 (b), 0 (c) on 1 + 2 + 0 degrees of freedom
    half = scipy.stats.t.ppf(0.975, 3) * np.sqrt(2.5 / 3)
    table = pooled_intervals(pd.Series(values), pd.Series(groups))
    assert table["mean"].tolist() == [1.5, 4, 9] and table.n.tolist() == [2, 3, 1]
    for sign, bound in ((-1, table.low), (1, table.high)):
        np.testing.assert_allclose(bound - table["mean"], sign * half / np.sqrt([2, 3, 1]))


def test_pooled_intervals_of_single_models_are_unknown():
    table = pooled_intervals(pd.Series([1.0, 2]), pd.Series(["a", "b"]))
    assert table["mean"].tolist() == [1, 2] and table[["low", "high"]].isna().all(axis=None)


# models, sampling, training


@pytest.fixture(scope="module")
def pipe():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield load_model("mini-v1")
    torch.set_num_threads(threads)


def test_texts_are_encoded_in_the_order_given(pipe):
    texts = ["a red bun", "", "a small fox", "a red bun", "Zebra", "a small fox"]
    together = encode_texts(pipe, texts, batch_size=2)
    apart = torch.cat([encode_texts(pipe, [t]) for t in texts])
    assert torch.allclose(together, apart, atol=1e-5) and torch.equal(together[0], together[3])
    assert not torch.allclose(together[0], together[2], atol=1e-2)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_target_follows_diffusers_definitions(kind):
    scheduler, g = DDPMScheduler(prediction_type=kind), torch.Generator().manual_seed(0)
    x, noise, t = (
        torch.randn(4, 2, 3, 3, generator=g),
        torch.randn(4, 2, 3, 3, generator=g),
        torch.tensor([0, 10, 500, 999]),
    )
    a = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)[t].reshape(4, 1, 1, 1)
    expected = {
        "epsilon": noise,
        "v_prediction": a.sqrt() * noise - (1 - a).sqrt() * x,
        "sample": x,
    }[kind]
    torch.testing.assert_close(target_of(scheduler, x, noise, t), expected, atol=1e-5, rtol=1e-4)


def test_every_seed_and_step_has_its_own_randomness():
    draws = {
        torch.randint(2**62, (), generator=step_generator(seed, step)).item()
        for seed in range(30)
        for step in range(30)
    }
    assert len(draws) == 900
    assert torch.equal(
        torch.rand(3, generator=step_generator(5, 7)), torch.rand(3, generator=step_generator(5, 7))
    )


FOUR = pair_sets.pairs(list(pictures(4, 32)), list("abcd"))
TRAINING = dict(steps=5, batch_size=2, lr=1e-3, schedule="cosine", ema=0.9)


def trained(**knobs):
    "Weights of mini-v1 after a few steps, by name."
    pipe = load_model("mini-v1")
    finetune(pipe, FOUR, **{**TRAINING, **knobs})
    return {
        f"{part}.{k}": v
        for part in ("unet", "text_encoder")
        for k, v in getattr(pipe, part).state_dict().items()
    }


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_same_seed_same_weights(pipe):
    short = dict(steps=2, ema=0.0)
    assert equal(trained(**short), trained(**short)) and not equal(
        trained(**short), trained(**short, seed=1)
    )


def test_the_text_encoder_is_trained_only_when_asked(pipe):
    before = pipe.text_encoder.state_dict()
    moved = lambda weights: any(
        not torch.equal(weights[f"text_encoder.{k}"], v) for k, v in before.items()
    )
    assert not moved(trained(steps=1)) and moved(trained(steps=1, train_text=True))


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_killed_between_checkpoints_and_resumed_equals_straight(
    pipe, tmp_path, monkeypatch, precision
):
    knobs, calls = (
        dict(mixed_precision=precision, checkpoint=str(tmp_path / "run.pt"), save_every=2),
        [],
    )

    def dies_at_4(*args):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return target_of(*args)

    with monkeypatch.context() as m:
        m.setattr("trainprove_nb.models.finetune.target_of", dies_at_4)
        with pytest.raises(KeyboardInterrupt):
            trained(**knobs)
        resumed = trained(**knobs)
    assert len(calls) == 4 + 3  # steps 1–4, then 3–5 from the checkpoint at 2
    assert equal(resumed, trained(mixed_precision=precision))


def test_same_seeds_same_bytes(pipe):
    draw = lambda seeds: generate(pipe, ["a fox", "a bun"], seeds, steps=2)
    assert (draw([1, 2]) == draw([1, 2])).all() and (draw([1, 2]) != draw([3, 4])).any()


def test_a_picture_depends_on_its_own_seed_alone(pipe):
    prompts, seeds = ["a fox", "a bun", "a fox", "a bus", "a key"], [5, 6, 7, 8, 9]
    draw = lambda places, size: generate(
        pipe, [prompts[k] for k in places], [seeds[k] for k in places], steps=2, batch_size=size
    ).astype(int)
    together = draw(range(5), 5)
    for places, size in (([0, 1, 2, 3, 4], 2), ([4, 3, 2, 1, 0], 3), ([2], 1)):
        assert np.abs(draw(places, size) - together[list(places)]).max() <= 1
    assert np.abs(together[0] - together[2]).max() > 1  # one prompt, two seeds


# store


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


# one's own pictures


def own(n, copies):
    "n different pictures, the first few of them `copies` times."
    images = pictures(n)
    return pair_sets.pairs(
        [*images, *np.repeat(images[:10], copies - 1, axis=0)],
        [f"text {k}" for k in range(n + 10 * (copies - 1))],
    )


def test_own_splits_are_disjoint_and_hold_every_picture_once():
    ds, seen = own(97, 4), []
    for split, n in zip(SHARES, (39, 29, 24, 5)):
        seen += [i.tobytes() for i in own_split(ds, split, n)["image"]]
        with pytest.raises(ValueError):
            own_split(ds, split, n + 1)
    assert len(seen) == len(set(seen)) == 97 and set(seen) == {i.tobytes() for i in ds["image"]}
    assert sorted(i.tobytes() for i in own_split(ds, "all", 97)["image"]) == sorted(seen)


def test_own_split_of_n_begins_the_larger_one():
    ds = own(100, 1)
    assert own_split(ds, "real", 5)["text"][:] == own_split(ds, "real", 30)["text"][:5]
