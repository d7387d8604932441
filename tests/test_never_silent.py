"What would give a wrong verdict without a word, each part by itself; the commands are in test_bad_inputs."

from itertools import product
from math import comb

import huggingface_hub
import numpy as np
import pytest
import torch
from helpers import refused

from trainprove_nb.audit.log_audit import LogFindings, Measured, _check_scores
from trainprove_nb.audit.log_report import _copies_part
from trainprove_nb.audit.released import AuditLog
from trainprove_nb.audit.scores import check_copies, classes_scores, near_copies
from trainprove_nb.evidence.denoising import _check_sees
from trainprove_nb.evidence.log_test import least_p, log_test
from trainprove_nb.models import pipelines
from trainprove_nb.models.whole import check_weights


def test_the_least_p_counts_all_ways_to_label():
    released = np.array([True, False, True, True, False, False, False, True, False])
    block = np.array(list("aabbbbbcc"))

    def same_counts(label):
        return all(label[block == b].sum() == released[block == b].sum() for b in "abc")

    ways = sum(same_counts(np.array(x)) for x in product([True, False], repeat=9))
    assert ways == comb(2, 1) * comb(5, 2) * comb(2, 1)
    assert least_p(released, block) == pytest.approx(1 / ways)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_best_scores_come_near_the_least_p(n):
    released, block = np.array([True, False, False] * n), np.repeat(np.arange(n), 3)
    found = log_test(released * 1.0, released, block).p
    assert found == pytest.approx(least_p(released, block), rel=0.1)


def test_the_least_p_of_a_long_log_is_that_of_its_shuffles():
    released, block = np.array([True, False] * 5000), np.repeat(np.arange(5000), 2)
    assert least_p(released, block, draws=999) == 1 / 1000


def test_a_network_is_refused_only_where_different_pictures_are_answered_alike():
    shown, constant = torch.rand(3, 4, 2, 2), torch.full((3, 4, 2, 2), 0.3)
    refused(lambda: _check_sees(shown, constant), "answers all pictures alike")
    refused(lambda: _check_sees(shown, torch.zeros(3, 4, 2, 2)), "answers all pictures alike")
    _check_sees(shown, constant + 1e-4 * shown)
    _check_sees(shown[:1], constant[:1])
    _check_sees(shown[:1].expand(3, -1, -1, -1), constant)


def test_weights_are_refused_only_where_all_are_zero():
    network = torch.nn.Linear(2, 2)
    for weight in network.parameters():
        weight.data.zero_()
    refused(lambda: check_weights({"unet": network}), "all 2 weights of its unet are zero")
    network.bias.data[0] = 1e-9
    check_weights({"unet": network})
    check_weights({"nothing": torch.nn.Identity()})


@pytest.fixture
def log():
    "Six pictures of two prompts; the last is white."
    images = np.random.default_rng(0).integers(0, 255, (6, 32, 32, 3)).astype(np.uint8)
    images[5] = 255
    texts, released = ["a cat"] * 3 + ["a dog"] * 3, np.array([True, False, False] * 2)
    return AuditLog(images, texts, released, np.array(texts), [f"{k}" * 64 for k in range(6)])


@pytest.mark.parametrize("side, k", [("released", 0), ("withheld", 1), ("released", 3)])
def test_one_copy_among_the_answers_is_told_with_its_name_and_side(log, side, k):
    answers = np.random.default_rng(1).integers(0, 255, (2, 32, 32, 3)).astype(np.uint8)
    check_copies(log, answers, ["a cat", "a dog"])
    answers[1] = log.images[k]
    says = f"b.png to 'a dog' is, pixel for pixel, the {side} picture", f"{k}" * 12, "1 such of 2"
    refused(lambda: check_copies(log, answers, ["a cat", "a dog"], ["a.png", "b.png"]), *says)


def test_near_pictures_and_blank_ones_are_no_copies(log):
    near = log.images[:1].copy()
    near[0, 0, 0, 0] ^= 1
    check_copies(log, near, ["a cat"])
    check_copies(log, log.images[5:], ["a dog"])


def test_an_enlarged_copy_is_a_copy(log):
    larger = log.images[:1].repeat(2, axis=1).repeat(2, axis=2)
    refused(lambda: check_copies(log, larger, ["a cat"]), "pixel for pixel")


@pytest.mark.parametrize("by, found", [(7, 1), (9, 0)])  # of 255: .027 and .035
def test_near_copies_are_counted_up_to_the_distance_of_twins(log, by, found):
    answers = np.random.default_rng(1).integers(0, 255, (3, 32, 32, 3)).astype(np.uint8)
    assert near_copies(log, answers, ["a cat", "a dog", "a dog"]) == 0
    known = log.images[3].astype(int)
    answers[1] = np.where(known < 128, known + by, known - by)
    assert near_copies(log, answers, ["a cat", "a dog", "a dog"]) == found
    # of another prompt, larger, blank
    assert near_copies(log, answers[1:2], ["a cat"]) == 0
    larger = answers[1:2].repeat(2, axis=1).repeat(2, axis=2)
    assert near_copies(log, larger, ["a dog"]) == found
    assert near_copies(log, log.images[5:], ["a dog"]) == 0


def test_copies_are_told_in_the_verdict(log):
    measured = Measured(None, None, "", log.images[:2], ["a cat"] * 2)
    found = LogFindings(None, measured, None, None, 1.0, None, 0.0)
    assert _copies_part(found) == []
    for n, passed in (0, True), (1, False):
        measured.copies = n
        (part,) = _copies_part(found)
        assert part.passed is passed and f"{n or 'None'}" in part.sentence
    assert "handed on" in part.sentence and "None of 2" not in part.sentence


def test_scores_that_tell_no_picture_from_another():
    block = np.array(list("aabb"))
    refused(lambda: _check_scores(np.array([3.0, 3.0, 1.0, 1.0]), block), "the same score")
    refused(lambda: _check_scores(np.zeros(4), block), "the same score")
    _check_scores(np.array([3.0, 3.0, 1.0, 1.1]), block)


def test_a_classifier_in_another_order_is_not_scored(log):
    many = AuditLog(*[np.tile(log.images, (4, 1, 1, 1)), log.texts * 4, None, None, []])
    truth = np.array([0, 0, 0, 1, 1, 1] * 4)
    classes_scores(lambda _: truth, many, ["cat", "dog"])
    refused(lambda: classes_scores(lambda _: 1 - truth, many, ["cat", "dog"]), "give mapping")


def test_the_hub_is_asked_once_for_a_name_that_nobody_has(monkeypatch):
    asked = []

    def nobody(self, name, timeout=None, **_):
        asked.append((name, timeout))
        raise ConnectionError("nobody answers")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", nobody)
    refused(lambda: pipelines.load_model("nobody/nothing-of-this-name"), "cannot be reached")
    assert len(asked) == 1 and asked[0][1] <= 10


def test_a_model_that_is_here_is_not_asked_for(monkeypatch):
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: 1 / 0)
    pipelines._look_up(str(pipelines.model_path("mini-v1")))
    monkeypatch.setattr(pipelines, "try_to_load_from_cache", lambda *_: "/there")
    pipelines._look_up("some/model")
