"The first paper: keys, Conf, contrast, prompts, discriminators and watermarks."

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import scipy.stats
import torch
from helpers import numbered, pictures, refused

from trainprove_nb.attribution.conf import calibrate_delta0, conf, first
from trainprove_nb.attribution.contrast import contrast
from trainprove_nb.attribution.discriminator import (
    DISCRIMINATORS,
    discriminator,
    examples,
    suspicion,
    train_discriminator,
)
from trainprove_nb.attribution.keys import detection_keys, random_keys, reproduction
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
from trainprove_nb.data import pairs as pair_sets
from trainprove_nb.data.corpora import corpus
from trainprove_nb.data.pairs import pixels
from trainprove_nb.models.encoding import tokenized
from trainprove_nb.models.pipelines import load_model

pytestmark = pytest.mark.usefixtures("one_thread")


# Keys


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
    one = random_keys(train, d, 25, 1)
    again = random_keys(train, d[::-1], 25, 1)
    other = random_keys(train, d, 25, 2)
    assert one["index"][:] == again["index"][:] != other["index"][:]
    assert len(set(one["index"])) == 25 and one["text"][:] == [f"pair {k}" for k in one["index"]]


def test_fewer_keys_are_the_first_of_more():
    train, d = numbered("pair", 80), np.random.default_rng(0).random(80)
    for draw in (detection_keys, random_keys):
        assert draw(train, d, 10)["index"][:] == draw(train, d, 40)["index"][:10]


@pytest.mark.parametrize("draw", [detection_keys, random_keys])
def test_more_keys_than_training_pairs(draw):
    refused(
        lambda: draw(numbered("text", 20), np.zeros(20), 21),
        "^21 key",
        "20 training pairs",
        "ask for 1 to 20",
    )


# Conf


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

    def share(t):
        return Fraction(int((pool <= t).sum()), n)

    larger = pool[pool > t].min()
    assert share(t) <= Fraction(str(fpr)) < share(larger)
    assert t in pool or share(t) == 0


def test_delta0_of_a_pool_that_holds_zero_can_be_used():
    assert conf([0, 0.1], calibrate_delta0([0, 0, 0.1, 0.2], 0.05)).value == 0


@pytest.mark.parametrize("N", [101, 0, -1, 2.5])
def test_N_above_the_mined_keys(N):
    for call in (lambda: conf([0.1] * 100, 0.15, N), lambda: first([[0.1] * 100], N)):
        refused(call, f"N = {N} ", "100 were mined", "ask for 1 to 100")


@pytest.mark.parametrize("delta0", [-0.01, float("nan"), "1e-3"])
def test_delta0_is_no_distance(delta0):
    refused(lambda: conf([0.1], delta0), f"delta0 = .?{delta0}", "at least 0", "give")


@pytest.mark.parametrize("fpr", [0, 1, -0.1, 1.5, float("nan")])
def test_calibration_to_an_impossible_rate(fpr):
    refused(lambda: calibrate_delta0([0.1, 0.2], fpr), f"fpr = {fpr}", "give", "between 0 and 1")


def test_calibration_without_innocents():
    refused(lambda: calibrate_delta0([]), "0 innocent answers", "at least one")


@pytest.mark.parametrize("distances", [[[0.1, 0.2], [0.1, 0.2]], [0.1, np.nan]])
def test_conf_of_distances_that_are_none(distances):
    refused(lambda: conf(distances), "one number for each key")


# Contrast


def test_contrast_by_hand():
    assert contrast([0.3, 0.5], [[0.1, 0.2], [0.3, 0.4]]) == pytest.approx(
        ((0.3 - 0.2) + (0.5 - 0.3)) / 2
    )
    assert contrast([0.3, 0.5], [0.3, 0.5]) == 0


def test_contrast_of_shapes_that_do_not_fit():
    refused(lambda: contrast([0.1, 0.2], [[0.1, 0.2, 0.3]]), "2 keys", r"\(1, 3\)")


# Prompts


@pytest.fixture(scope="module")
def pipe(one_thread):
    return load_model("mini-v2")


def test_embeddings_of_the_table_read_like_the_tokens(pipe):
    ids = tokenized(pipe, ["a person with red hair", "a cat"]).input_ids
    with torch.no_grad():
        expected = pipe.text_encoder(ids)[0]
        with reading(pipe.text_encoder, pipe.text_encoder.get_input_embeddings().weight[ids]):
            found = pipe.text_encoder(torch.zeros_like(ids))[0]
        torch.testing.assert_close(found, expected)
        # afterwards it reads tokens again
        torch.testing.assert_close(pipe.text_encoder(ids)[0], expected)


def test_nearest_of_a_row_is_its_token(pipe):
    table = pipe.text_encoder.get_input_embeddings().weight.detach()
    words = whole_words(pipe.tokenizer)
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
    # at the start, after 10 steps, and at the end
    assert len(found["text"]) == 4 and [len(c) for c in found["course"]] == [3] * 4
    assert all(a >= b for c in found["course"] for a, b in pairwise(c))
    for before_, after, course in zip(
        found["before"], found["after"], found["course"], strict=True
    ):
        # measured on other draws, but of the same words
        assert (before_ == after) == (course[0] == course[-1])
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


def test_unknown_objective(pipe):
    refused(
        lambda: optimise_prompts(pipe, corpus("avatars", "source", 2), objective="luck"),
        "'luck'",
        "denoising, sampling",
    )


# Discriminators


def shown(kind, n=12, seed=0):
    "Examples of a model that answers with the source's picture (1) or any other (0)."
    keys, own, other = (pictures(n, 32, seed=10 * seed + k) for k in range(3))
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
        lambda: examples(pictures(3, 32), pictures(4, 32), pictures(3, 32)),
        r"\(3, 32, 32, 3\)",
        r"\(4, 32, 32, 3\)",
    )


# Watermarks


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
    x = pixels(corpus("avatars", "evaluation", 60))
    others = pixels(corpus("avatars", "calibration", 60))
    message = draw_message(0)
    assert watermark_pvalue(read(embed(x, message, 1), 1, reference=others), message) < 1e-6
    unmarked = read(x, 1, reference=others)
    ps = [watermark_pvalue(unmarked, draw_message(k)) for k in range(1000)]
    assert np.mean(np.array(ps) <= 0.05) <= scipy.stats.binom.isf(0.001, 1000, 0.05) / 1000


def test_watermark_that_does_not_fit():
    refused(lambda: carriers(0, 8, 8), "8×8", "at least 9×9")
    refused(lambda: carriers(0, 32, 32, 200), "200 bits", "from 1 to 117")
    refused(lambda: watermark_pvalue(np.zeros((3, 32)), draw_message(0, 16)), "32 bits", "16")
