"Scores of pictures for the log test, and the lab's trials of it."

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import refused
from scipy.special import logit, softmax
from sklearn.decomposition import PCA

from trainprove_nb.data.corpora import corpus
from trainprove_nb.data.pairs import pixels
from trainprove_nb.evidence.denoising import LEVELS, denoising_losses, denoising_score
from trainprove_nb.evidence.log_test import log_test
from trainprove_nb.evidence.matching import (
    Differences,
    answer_distances,
    distance_score,
    rms_score,
    whitened_score,
    whitening,
)
from trainprove_nb.evidence.naming import MOST, VERSIONS, changed, log_odds, naming_score
from trainprove_nb.evidence.restoring import PipelineRestorer, restoring_losses
from trainprove_nb.lab.generator_recipes import GeneratorRecipes
from trainprove_nb.lab.generator_scales import generator_scale
from trainprove_nb.lab.laundering import base_of
from trainprove_nb.lab.log_recipes import (
    caption_answers,
    picture_losses,
    picture_restored,
    withheld,
)
from trainprove_nb.lab.log_trials import (
    LogPlan,
    _unseen,
    before_log,
    log_stages,
    log_trials,
    places_of,
    pool,
    redrawn_log,
    stands_before,
)
from trainprove_nb.lab.makers import check_recipe
from trainprove_nb.models.encoding import encode_images, encode_texts, predict
from trainprove_nb.models.pipelines import load_model


@pytest.fixture(scope="module")
def pipe():
    return load_model("mini-v1")


@pytest.fixture(scope="module")
def shown():
    pairs = corpus("emoji", "evaluation", 5)
    return pixels(pairs), list(pairs["text"])


def test_losses_are_the_errors_of_the_noise(pipe, shown):
    images, texts = shown
    level = 300
    found = denoising_losses(pipe, images, texts, (level,), seed=4)[:, 0]
    noise = torch.randn(
        (1, *encode_images(pipe, images).shape[1:]), generator=torch.Generator().manual_seed(4)
    )
    kept = pipe.scheduler.alphas_cumprod[level]
    with torch.no_grad():
        for k in range(len(texts)):  # one picture at a time, by the formula of the paper of DDPM
            z = encode_images(pipe, images[k : k + 1])
            noisy = kept.sqrt() * z + (1 - kept).sqrt() * noise
            answer = predict(
                pipe,
                noisy,
                torch.tensor([level]),
                encode_texts(pipe, texts[k : k + 1]),
            )
            by_hand = ((answer - noise) ** 2).mean().log().item()
            assert found[k] == pytest.approx(by_hand, abs=1e-4)


def test_losses_do_not_depend_on_order_or_batches(pipe, shown):
    images, texts = shown
    order = [3, 1, 4, 0, 2]
    usual = denoising_losses(pipe, images, texts)
    mixed = denoising_losses(pipe, images[order], [texts[k] for k in order], batch_size=2)
    assert usual.shape == (5, len(LEVELS))
    np.testing.assert_allclose(mixed, usual[order], atol=1e-4)


def test_mixed_precision_moves_losses_a_little(pipe, shown):
    usual = denoising_losses(pipe, *shown)
    mixed = denoising_losses(pipe, *shown, mixed_precision="bf16")
    assert mixed.dtype == np.float32 and not np.array_equal(mixed, usual)
    np.testing.assert_allclose(
        mixed, usual, atol=0.05
    )  # losses of a level are spread by .3 or more
    refused(lambda: denoising_losses(pipe, *shown, mixed_precision="fp8"), "'fp8'", "choose")


def test_a_model_is_no_better_than_itself(pipe, shown):
    losses = denoising_losses(pipe, *shown)
    assert (denoising_score(losses, losses) == 0).all()
    better = denoising_score(losses - 1, losses)
    np.testing.assert_allclose(better, 1, rtol=1e-5)


# Answers


def made_up(lean, seed=0, captions=30, per_side=2, answers=4):
    "Pictures of some prompts, and answers that lean towards the released ones."
    rng = np.random.default_rng(seed)
    prompts = np.repeat([f"a {k}" for k in range(captions)], 2 * per_side)
    released = np.tile(np.arange(2 * per_side) < per_side, captions)
    pictures = rng.normal(128, 12, (len(prompts), 6, 6, 3))
    asked = np.repeat([f"a {k}" for k in range(captions)], answers)
    replies = rng.normal(128, 12, (len(asked), 6, 6, 3))
    for k in range(captions):
        of = pictures[(prompts == f"a {k}") & released].mean(0) - 128
        replies[asked == f"a {k}"] += lean * of
    clip = [np.clip(x, 0, 255).round().astype(np.uint8) for x in (pictures, replies)]
    return clip[0], list(prompts), clip[1], list(asked), released


@pytest.mark.parametrize("score", [rms_score, whitened_score])
def test_who_leans_is_found_and_who_does_not_is_not(score):
    for lean, low, high in ((0.8, 3, 99), (0.0, -3, 3)):
        images, prompts, answers, asked, released = made_up(lean)
        z = log_test(score(Differences(images, prompts, answers, asked)), released, prompts).z
        assert low < z < high


def test_innocents_are_accused_no_more_often_than_promised():
    p = []
    for seed in range(150):
        images, prompts, answers, asked, released = made_up(0, seed, captions=12)
        score = whitened_score(Differences(images, prompts, answers, asked))
        p.append(log_test(score, released, prompts, draws=199, seed=seed).p)
    assert np.mean(np.array(p) <= 0.05) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 150)


def test_the_whitened_score_is_the_mean_cosine_in_units_of_spread():
    images, prompts, answers, asked, _ = made_up(0.5, captions=40, per_side=3)
    found = Differences(images, prompts, answers, asked)
    score = whitened_score(found)
    values, vectors = np.linalg.eigh(np.cov(found.pictures.T))
    unit = vectors / (np.sqrt(np.maximum(values, 0)) + 0.005)

    def arrow(x):
        return x @ unit / np.linalg.norm(x @ unit)

    for k in (0, 17, 100):
        mine = found.answers[found.of_answer == found.block[k]]
        by_hand = np.mean([arrow(found.pictures[k]) @ arrow(a) for a in mine])
        assert score[k] == pytest.approx(by_hand, abs=1e-4)


def test_rms_orders_pictures_as_their_distance_to_the_mean_answer():
    images, prompts, answers, asked, _ = made_up(0.5)
    score = rms_score(Differences(images, prompts, answers, asked))
    mine = np.flatnonzero(np.array(prompts) == "a 3")
    mean = answers[np.array(asked) == "a 3"].astype(float).mean(0)
    far = ((images[mine] - mean) ** 2).mean((1, 2, 3))
    assert (np.argsort(-far) == np.argsort(score[mine])).all()


def test_answers_to_other_prompts_are_left_out():
    images, prompts, answers, asked, _ = made_up(0.5)
    more = np.concatenate([answers, answers[:3]]), [*asked, "x", "y", "z"]
    usual = whitened_score(Differences(images, prompts, answers, asked))
    np.testing.assert_allclose(whitened_score(Differences(images, prompts, *more)), usual)


def test_another_suspect_s_answers_are_scored_as_if_the_pictures_were_new():
    images, prompts, answers, asked, _ = made_up(0.5)
    others = made_up(0.0, seed=1)[2]
    first, anew = (Differences(images, prompts, x, asked) for x in (answers, others))
    unit, fewer = whitening(first.pictures), whitening(first.pictures, 5)
    kept = whitened_score(first, unit)
    for _ in range(2):  # the second time the first units are no longer the last
        again = first.before(others, asked)
        for other in (unit, fewer):
            assert np.array_equal(whitened_score(again, other), whitened_score(anew, other))
        assert np.array_equal(rms_score(again), rms_score(anew))
    assert np.array_equal(whitened_score(first, unit), kept), "the first suspect was changed"
    refused(lambda: first.before(others[4:], asked[4:]), "1 prompts", "'a 0'", "ask")


def test_any_distance_is_a_score(tmp_path, monkeypatch):
    images, prompts, answers, asked, _ = made_up(0.5)
    found = Differences(images, prompts, answers, asked)
    far = [row.mean() for row in answer_distances(found)]
    score = distance_score(images, prompts, answers, asked)
    np.testing.assert_allclose(score, np.negative(far), rtol=1e-6)
    (tmp_path / "mine_apart.py").write_text(
        "def brightness(a, b):\n    return abs(a.mean((1, 2, 3)) - b.mean((1, 2, 3)))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    score = distance_score(images, prompts, answers, asked, "mine_apart:brightness")
    for k in (0, 30):
        theirs = answers[np.array(asked) == prompts[k]].mean((1, 2, 3))
        apart = np.abs(images[k].mean() - theirs).mean() / 255  # a distance sees numbers up to 1
        assert score[k] == pytest.approx(-apart, rel=1e-4)  # in single precision
    refused(lambda: distance_score(images, prompts, answers, asked, "near"), "'near'", "choose")
    refused(lambda: distance_score(images, prompts, answers[4:], asked[4:]), "1 prompts", "ask")


def test_a_prompt_without_answer_is_refused():
    images, prompts, answers, asked, _ = made_up(0.5)
    refused(
        lambda: Differences(images, prompts, answers[4:], asked[4:]), "1 prompts", "'a 0'", "ask"
    )


def test_whitening_gives_every_direction_one_spread():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(500, 8)) * np.logspace(0, 2, 8)
    assert (rows @ whitening(rows, floor=0)).std(0, ddof=1) == pytest.approx(np.ones(8))


# The lab's trials


@pytest.fixture(scope="module")
def plan():
    return LogPlan(GeneratorRecipes(generator_scale("mini", rhos=(0, 0.3, 1))))


def test_every_recipe_is_one_that_can_be_made(plan):
    for source in plan.recipes.sources():
        for stage, wanted in log_stages(plan, source).items():
            assert wanted, stage
            for recipe in wanted:
                check_recipe(recipe)


def test_a_log_and_what_is_withheld_differ_in_seeds_and_number_alone(plan):
    source = plan.recipes.sources(["mini-v2-emoji"])[0]
    log, kept = plan.recipes.generated(source, 1), withheld(plan.recipes, source, 1, m=3)
    assert [k for k in log if log[k] != kept[k]] == ["shares", "role"]
    assert kept["shares"] == [3 * n for n in log["shares"]]
    roles = [tuple(part["role"]) for part in pool(plan, source)]
    assert len(set(roles)) == len(roles) == 4


def test_infringers_stand_before_another_account_as_innocents(plan):
    source = plan.recipes.sources(["mini-v1"])[0]
    trials = log_trials(plan.recipes, source)
    kinds = [t.kind for t in trials]
    assert kinds.count("infringing") == 4 and len(kinds) == 8
    assert {"disjoint data", "same data", "other corpus", "another's data"} < set(kinds)


def test_every_suspect_is_compared_with_its_source_s_base(plan):
    for source in plan.recipes.sources():
        bases = [base_of(t.model) for t in log_trials(plan.recipes, source)]
        assert all(base == plan.recipes.base(source.base) for base in bases)


def test_infringers_stand_before_all_logs_at_the_largest_rho_or_where_asked(plan):
    source = plan.recipes.sources(["mini-v1"])[0]
    wide = replace(plan, everywhere=True)
    for trial in log_trials(plan.recipes, source):
        own_alone = trial.kind == "infringing" and trial.rho < 1
        assert stands_before(plan, trial) == ([trial.k] if own_alone else [0, 1])
        assert stands_before(wide, trial) == [0, 1]


class Made:
    "A pool of made-up pictures: two accounts, five prompts, of each two released and four withheld."

    def __init__(self):
        grid = [(a, p, r) for a in (0, 1) for p in "abcde" for r in (1, 1, 0, 0, 0, 0)]
        self.account, self.prompts, self.released = map(np.array, zip(*grid, strict=True))
        self.released = self.released.astype(bool)
        self.places = places_of(self.prompts)


def test_a_redrawn_log_is_as_large_and_holds_nothing_that_was_seen(plan):
    there, rng = Made(), np.random.default_rng(0)
    source = plan.recipes.sources(["mini-v1"])[0]
    infringer = log_trials(plan.recipes, source)[1]
    assert infringer.kind == "infringing" and infringer.k == 1
    seen = (there.account == 1) & there.released
    for _ in range(20):
        places, labels = redrawn_log(there, _unseen(infringer, there), rng)
        assert len(set(places)) == len(places) == 30 and labels.sum() == 10
        assert not seen[places].any()


def test_rows_say_what_a_suspect_is_to_the_log(plan):
    source = plan.recipes.sources(["mini-v1"])[0]
    infringer = log_trials(plan.recipes, source)[1]
    there = Made()
    scores = {"known": there.released & (there.account == 1)}
    own, other = (before_log(there, scores, infringer, k, draws=999)[0] for k in (1, 0))
    assert own["kind"] == "infringing" and own["p"] < 0.01
    assert other["kind"] == "another account" and other["p"] == 1
    assert (own["released"], own["withheld"], own["prompts"]) == (10, 20, 5)


def test_no_answer_or_loss_is_asked_for_twice(plan):
    source = plan.recipes.sources(["mini-v1"])[0]
    model = plan.recipes.suspect(source, 1, 0)
    first, second = (caption_answers(plan.recipes, model, source, r) for r in (0, 1))
    assert first["role"] != second["role"]
    log = plan.recipes.generated(source, 0)
    of_base = picture_losses(plan.recipes, plan.recipes.base("mini-v1"), log)
    assert picture_losses(plan.recipes, model, log)["seed"] == of_base["seed"]


# Pictures that come back


def test_what_comes_back_is_compared_with_what_was_sent(shown):
    images, texts = shown
    brighter = restoring_losses(lambda x, prompts: np.minimum(x, 250) + 5, images, texts)
    as_it_is = restoring_losses(lambda x, prompts: x, images, texts)
    squared = ((np.minimum(images, 250) + 5.0 - images) ** 2).mean((1, 2, 3))
    np.testing.assert_allclose(brighter, np.log(squared + 1e-3), rtol=1e-4)
    assert (as_it_is < brighter).all() and np.isfinite(as_it_is).all()


def test_a_restorer_that_changes_the_size_is_refused(shown):
    images, texts = shown
    refused(
        lambda: restoring_losses(lambda x, p: x[:, ::2], images, texts),
        "(5, 32, 32, 3)",
        "(5, 16, 32, 3)",
        "same size",
    )


def test_all_pictures_get_the_same_noise_whatever_their_batch(pipe, shown):
    images, texts = shown
    usual = PipelineRestorer(pipe, batch_size=5)(images, texts)
    order = [2, 0, 4, 1, 3]
    mixed = PipelineRestorer(pipe, batch_size=2)(images[order], [texts[k] for k in order])
    assert usual.dtype == np.uint8
    assert np.abs(mixed.astype(int) - usual[order]).max() <= 1


def test_mixed_precision_moves_what_comes_back_a_little(pipe, shown):
    usual = restoring_losses(PipelineRestorer(pipe), *shown)
    mixed = restoring_losses(PipelineRestorer(pipe, mixed_precision="bf16"), *shown)
    assert not np.array_equal(mixed, usual)
    np.testing.assert_allclose(mixed, usual, atol=0.1)


def test_the_lab_asks_in_the_precision_of_its_scale():
    recipes = GeneratorRecipes(generator_scale("mini", mixed_precision="bf16"))
    model, log = recipes.base("mini-v1"), recipes.train(recipes.sources(["mini-v1"])[0])
    assert picture_losses(recipes, model, log)["mixed_precision"] == "bf16"
    assert picture_restored(recipes, model, log)["restoring"]["mixed_precision"] == "bf16"


# Classifiers


def test_log_odds_are_the_logit_of_the_probability():
    rng = np.random.default_rng(0)
    scores, truth = rng.normal(0, 2, (50, 7)), rng.integers(0, 7, 50)
    p = softmax(scores, 1)[range(50), truth]
    assert np.allclose(log_odds(scores, truth), logit(p))
    assert np.allclose(
        log_odds(np.log(softmax(scores, 1)), truth), logit(p)
    )  # of probabilities too
    assert np.allclose(log_odds(scores + 900, truth), log_odds(scores, truth))


def test_log_odds_have_an_end():
    "Where a probability is rounded to 1, or to 0, one picture must not outweigh all others."
    scores, truth = np.array([[0, -900.0], [-900.0, 0]]), np.array([0, 0])
    assert log_odds(scores, truth).tolist() == [MOST, -MOST]
    assert log_odds(np.log(np.array([[1, 1e-12]])), np.array([0])).tolist() == [MOST]


def test_labels_are_counted_and_scores_averaged():
    truth, rng = np.array([0, 1, 2]), np.random.default_rng(1)
    labels = [np.array([0, 1, 0]), np.array([0, 0, 0])]
    assert naming_score(labels, truth).tolist() == [1, 0.5, 0]
    scores = [rng.normal(size=(3, 4)) for _ in range(2)]
    by_hand = np.mean([logit(softmax(s, 1)[range(3), truth]) for s in scores], axis=0)
    assert np.allclose(naming_score(scores, truth), by_hand)


def test_a_picture_changes_little():
    images = np.random.default_rng(2).integers(0, 256, (3, 8, 8, 3), np.uint8)
    versions = changed(images)
    assert len(versions) == VERSIONS and versions[0] is images
    assert len({v.tobytes() for v in versions}) == VERSIONS
    assert all(v.shape == images.shape and v.sum() == images.sum() for v in versions)


@pytest.mark.parametrize("n, numbers", [(60, 200), (300, 40)])
def test_whitening_is_that_of_principal_components(n, numbers):
    "Beside sklearn's PCA, without directions in which rows do not vary: thirds less their mean leave some."
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(n, numbers)) * np.linspace(0.01, 1, numbers)
    rows -= np.repeat(rows.reshape(n // 3, 3, numbers).mean(1), 3, axis=0)
    unit = whitening(rows.astype(np.float32))
    pca = PCA(svd_solver="full").fit(rows)
    varies = pca.explained_variance_ > 1e-12
    known = pca.components_[varies].T / (np.sqrt(pca.explained_variance_[varies]) + 0.005)
    assert unit.shape == known.shape == (numbers, min(2 * n // 3, numbers))
    probes = rng.normal(size=(5, numbers))
    found, expected = (probes @ u @ u.T @ probes.T for u in (unit, known))
    assert np.allclose(found, expected, rtol=1e-3)
