"An audit with a log: what is read, asked, kept and said; and what stops it."

import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from datasets import Dataset
from datasets import Image as DatasetsImage
from helpers import refused
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from trainprove_nb.audit import log_audit, log_report, log_verdict
from trainprove_nb.audit.command import audit as command
from trainprove_nb.audit.controls import chance_to_find, control_pairs, found_interval
from trainprove_nb.audit.log_audit import LogAudit, Measured, find_out
from trainprove_nb.audit.outlook import expected_power, log_size, outlook
from trainprove_nb.audit.reading import read_audit
from trainprove_nb.audit.released import (
    AuditLog,
    Sampler,
    as_audit_log,
    encoder_of,
    released_log,
    with_withheld,
)
from trainprove_nb.audit.scores import (
    Asked,
    asked,
    classes_scores,
    in_small,
    kept_answers,
    named_class,
    pictures_scores,
    pipeline_name,
    prompts_fit,
    prompts_scores,
    questions,
)
from trainprove_nb.data.pairs import PAIRS, pairs
from trainprove_nb.evidence.commitment import Checked
from trainprove_nb.evidence.log_test import log_test
from trainprove_nb.evidence.naming import changed
from trainprove_nb.evidence.release_log import Recorder, encode, new_key
from trainprove_nb.evidence.restoring import PipelineRestorer, restoring_losses
from trainprove_nb.lab.store import Store
from trainprove_nb.suspects.opening import open_suspect

RNG = np.random.default_rng(0)


def paint(prompts, seeds):
    "A picture of a seed: its own colour, and some grain."
    pictures = []
    for seed in seeds:
        rng = np.random.default_rng(seed % 2**32)
        grain = rng.integers(0, 60, (16, 16, 3))
        pictures.append(np.clip(rng.integers(0, 195, 3) + grain, 0, 255))
    return np.array(pictures, np.uint8)


SAMPLER = Sampler(paint, {"model": "paint"})


def a_log(n=40, withheld=2):
    "A log of n requests."
    released = np.tile([True] + [False] * withheld, n)
    size = len(released)
    return AuditLog(
        images=paint([""] * size, range(size)),
        texts=[f"prompt {k // (1 + withheld)}" for k in range(size)],
        released=released,
        block=np.repeat([f"r{k}" for k in range(n)], 1 + withheld),
        files=[str(k) for k in range(size)],
    )


@pytest.fixture
def case(tmp_path):
    "A file, and what it stands for."

    def make(lead=0.0, control=None, level=0.05, scores=None, log=None):
        log = log or a_log()
        account = ", account: alice" if log.account is None else ""
        (tmp_path / "log").mkdir(exist_ok=True)
        (tmp_path / "audit.yaml").write_text(
            f"released: {{log: log{account}}}\nsuspect: {{model: mini-v2, access: prompts}}\n"
            f"test: {{level: {level}, draws: 999}}\n"
        )
        audit = read_audit(tmp_path / "audit.yaml")
        opened = LogAudit(audit, Store(str(tmp_path / "lab")), log, Asked(paint, {}), "prompts")
        n = len(log.texts)
        noise = np.random.default_rng(5).normal(size=n) if scores is None else scores
        measured = Measured(noise + lead * log.released, np.ones(n, bool), "simulated")
        measured.texts, measured.answers = log.prompts, paint([""] * 40, range(40))
        found = find_out(opened, measured)
        if control is not None:
            known = np.random.default_rng(6).normal(size=n) + control * log.released
            found.controls = [(1.0, log_test(known, log.released, log.block, 999))]
        return opened, found

    return make


# The log


@pytest.mark.parametrize("quality", [30, 60, 95])
@pytest.mark.parametrize("subsampling", [0, 2])
def test_a_jpeg_tells_how_it_was_made(quality, subsampling):
    made = dict(format="JPEG", quality=quality, subsampling=subsampling)
    file = encode(paint([""], [1])[0], made)
    assert encode(paint([""], [1])[0], encoder_of(file)) == file
    other = encode(paint([""], [1])[0], {**made, "quality": quality - 5})
    assert encode(paint([""], [1])[0], encoder_of(other)) != file


def test_a_picture_whose_file_says_something_else_is_the_same(tmp_path):
    "Else it would count twice, and a picture that everybody knows would be counted as often as it was sent."
    (tmp_path / "sent").mkdir()
    rows = [{"file_name": f"{k}.png", "text": f"prompt {k // 2}"} for k in range(6)]
    (tmp_path / "sent/metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for k, picture in enumerate(np.repeat(paint([""] * 3, range(3)), 2, axis=0)):
        told = PngInfo()
        told.add_text("sent", str(k))
        Image.fromarray(picture).save(tmp_path / f"sent/{k}.png", pnginfo=told)
    log = released_log(Store(str(tmp_path / "lab")), str(tmp_path / "sent"), sampler=SAMPLER)
    assert len({file.read_bytes() for file in (tmp_path / "sent").glob("*.png")}) == 6
    assert log.released.sum() == 3 and len(log.texts) == 9


def test_a_lossy_file_that_does_not_tell_is_refused():
    refused(lambda: encoder_of(encode(paint([""], [1])[0], {"format": "WEBP"})), "WEBP", "encoder")


def sent(n=60, made=None):
    return [encode(x, made or {"format": "PNG"}) for x in paint([""] * n, range(1000, 1000 + n))]


def as_sent(files, texts):
    "Pictures and prompts as a dataset, each file as it is."
    rows = [{"image": {"bytes": f}, "text": t} for f, t in zip(files, texts, strict=True)]
    return Dataset.from_list(rows, features=PAIRS)


def test_fresh_pictures_go_through_the_encoder_of_the_released_ones(tmp_path):
    made = {"format": "JPEG", "quality": 40}
    log = with_withheld(Store(str(tmp_path)), as_sent(sent(6, made), ["a"] * 6), SAMPLER)
    encoders = [encoder_of(log.images.file(k)) for k in range(len(log.texts))]
    assert all(e["format"] == "JPEG" for e in encoders)
    assert len({str(e["qtables"]) for e in encoders}) == 1


def test_each_fresh_picture_is_encoded_as_its_own_released_one(tmp_path):
    "A service that changed its encoder: with that of the first file, half of the sides would differ."
    coarse, fine = ({"format": "JPEG", "quality": q} for q in (30, 90))
    files = [*sent(2, coarse), *sent(4, fine)[2:]]
    log = with_withheld(Store(str(tmp_path)), as_sent(files, ["a"] * 4), SAMPLER)
    found = {}
    for k, block in enumerate(log.block):
        found.setdefault(block, set()).add(str(encoder_of(log.images.file(k))["qtables"]))
    assert [len(tables) for tables in found.values()] == [1] * 4
    assert len(set.union(*found.values())) == 2


def test_a_log_is_drawn_in_parts_and_no_part_twice(tmp_path):
    drawn = []

    def counting(prompts, seeds):
        drawn.append(len(seeds))
        if len(drawn) == 80:
            raise KeyboardInterrupt
        return paint(prompts, seeds)

    pictures = as_sent(sent(120), [f"p{k}" for k in range(120)])
    ask = (pictures, Sampler(counting, {"model": "paint"}))
    with pytest.raises(KeyboardInterrupt):
        with_withheld(Store(str(tmp_path)), *ask)
    log = with_withheld(Store(str(tmp_path)), *ask)
    assert len(drawn) == 80 + 70  # 50 were kept, the part in hand was drawn again
    assert log.digest == with_withheld(Store(str(tmp_path / "b")), pictures, SAMPLER).digest
    assert (np.bincount(np.unique(log.block, return_inverse=True)[1]) == 3).all()
    assert len({f for f in log.files}) == len(log.files)


def imagefolder(folder, files, texts):
    folder.mkdir()
    for k, file in enumerate(files):
        (folder / f"{k}.png").write_bytes(file)
    rows = [json.dumps({"file_name": f"{k}.png", "text": t}) for k, t in enumerate(texts)]
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    return str(folder)


def test_a_folder_of_released_pictures_needs_a_model(tmp_path):
    folder = imagefolder(tmp_path / "sent", sent(4), ["a", "b", "c", "c"])
    store = Store(str(tmp_path / "lab"))
    refused(lambda: released_log(store, folder), "owned.model", "withheld")
    refused(lambda: released_log(store, folder, "alice", SAMPLER), "alice", "leave account out")
    log = released_log(store, folder, sampler=SAMPLER)
    assert log.released.sum() == 4 and log.prompts == ["a", "b", "c"]


def test_a_pair_that_comes_twice_is_released_once(tmp_path):
    files = sent(2)
    folder = imagefolder(tmp_path / "sent", [files[0], files[0], files[1]], ["a", "a", "b"])
    log = released_log(Store(str(tmp_path / "lab")), folder, sampler=SAMPLER)
    assert log.released.sum() == 2


def test_another_log_has_another_digest():
    log = a_log()
    swapped = log.released.copy()
    swapped[:2] = swapped[:2][::-1]
    others = [
        replace(log, texts=["other", *log.texts[1:]]),
        replace(log, released=swapped),
        replace(log, block=log.block[::-1].copy()),
        replace(log, files=["x", *log.files[1:]]),
    ]
    assert len({x.digest for x in [log, *others]}) == 5


# Asking


@pytest.mark.parametrize(
    "budget, rounds, asked", [(1000, 3, 40), (99, 2, 40), (40, 1, 40), (7, 1, 7)]
)
def test_no_more_is_asked_than_the_budget(budget, rounds, asked):
    wanted = questions(a_log(), 3, budget)
    assert [len(prompts) for prompts, _ in wanted] == [asked] * rounds
    assert wanted == questions(a_log(), 3, budget)


def test_no_question_is_put_twice(tmp_path):
    put = []

    def service(prompts, seeds):
        put.extend(zip(prompts, seeds, strict=True))
        if len(put) > 60:
            raise KeyboardInterrupt
        return paint(prompts, seeds)

    who = Asked(service, {"given": "service"})
    rounds = questions(a_log(60), 1)
    with pytest.raises(KeyboardInterrupt):
        kept_answers(Store(str(tmp_path)), who, [(rounds[0][0], 0), (rounds[0][0], 1)])
    before = len(put)
    put.clear()
    kept_answers(Store(str(tmp_path)), who, [(rounds[0][0][:50], 0)])
    assert before > 60 and not put


def test_answers_that_are_none_are_not_kept(tmp_path):
    def black(prompts, seeds):
        return np.zeros((len(prompts), 16, 16, 3), np.uint8)

    store = Store(str(tmp_path))
    ask = (store, Asked(black, {"given": "black"}), [(["a", "b"], 0)])
    refused(lambda: kept_answers(*ask), "black", "look at them")
    assert not (tmp_path / "audit-answers").exists() or not list(
        (tmp_path / "audit-answers").iterdir()
    )


def test_a_local_pipeline_restores_pictures_and_is_compared_to_another(tmp_path):
    "By the audit's own way in: it is opened as one that draws from prompts."
    log = a_log(3, 1)
    texts = ["a face"] * len(log.texts)
    log = replace(log, texts=texts)
    suspect, other = (open_suspect(name) for name in ("mini-v1", "mini-v2"))
    both = [asked(x, name) for x, name in ((suspect, "mini-v1"), (other, "mini-v2"))]
    found = pictures_scores(Store(str(tmp_path)), both[0], log, both[1])
    losses = [
        restoring_losses(PipelineRestorer(x.pipe), log.images, texts) for x in (other, suspect)
    ]
    assert found == pytest.approx(losses[0] - losses[1])
    kept = sorted(tmp_path.rglob("recipe.json"))
    assert len(kept) == 2
    again = pictures_scores(Store(str(tmp_path)), both[0], log, both[1])
    assert (again == found).all() and sorted(tmp_path.rglob("recipe.json")) == kept


def test_scores_do_not_see_labels():
    log = a_log()
    answers, texts = paint([""] * 80, range(500, 580)), log.prompts * 2
    other = replace(log, released=np.roll(log.released, 1))
    assert np.array_equal(
        prompts_scores(log, answers, texts), prompts_scores(other, answers, texts)
    )


def test_prompts_that_were_not_asked_have_no_score():
    log = a_log()
    scores = prompts_scores(log, paint([""] * 10, range(10)), log.prompts[:10])
    asked = np.isin(log.texts, log.prompts[:10])
    assert np.isfinite(scores[asked]).all() and np.isnan(scores[~asked]).all()


def test_who_answers_with_the_released_picture_is_found():
    log = a_log()
    given = {log.texts[k]: log.images[k] for k in np.flatnonzero(log.released)}
    answers = np.stack([given[text] for text in log.prompts])
    verdict = log_test(prompts_scores(log, answers, log.prompts), log.released, log.block, 999)
    assert verdict.p <= 0.001


@pytest.mark.parametrize(
    "size, wanted", [((512, 512), (64, 64)), ((32, 48), (32, 48)), ((128, 64), (64, 32))]
)
def test_pictures_are_compared_in_small(size, wanted):
    width, height = size
    small = in_small(np.zeros((1, height, width, 3), np.uint8), size)
    assert small.shape[2:0:-1] == wanted


@pytest.mark.parametrize(
    "text, k", [("a photo of a cat", 0), ("Wild cat, running.", 2), ("my DOG!", None)]
)
def test_the_class_that_a_prompt_names(text, k):
    classes = ["cat", "dog", "wild cat"]
    if k is None:
        refused(lambda: named_class(text, classes), "names 0", "suspect.settings.classes")
    else:
        assert named_class(text, classes) == k
    refused(lambda: named_class("a cat and a dog", classes), "names 2")


def test_a_classifier_that_knows_what_was_released_is_found():
    log = replace(a_log(), texts=[f"a {'cat' if k // 3 % 2 else 'dog'}" for k in range(120)])
    known = {x.tobytes() for x in log.images[log.released]}
    truth = {
        x.tobytes(): named_class(t, ["cat", "dog"])
        for x, t in zip(log.images, log.texts, strict=True)
    }
    changes = [{x.tobytes(): k for k, x in enumerate(version)} for version in changed(log.images)]

    def place(x):
        return next(version[x.tobytes()] for version in changes if x.tobytes() in version)

    def scores(images):
        out = np.zeros((len(images), 2))
        for row, x in enumerate(images):
            original = log.images[place(np.ascontiguousarray(x))].tobytes()
            out[row, truth[original]] = 2.0 if original in known else 1.0
        return out

    lead, _ = classes_scores(scores, log, ["cat", "dog"])
    assert log_test(lead, log.released, log.block, 999).p <= 0.001
    assert np.allclose(classes_scores(scores, log, ["cat", "dog"], scores)[0], 0)

    def labels(images):
        return scores(images).argmax(1)

    found, alone = classes_scores(labels, log, ["cat", "dog"])
    assert set(found) == {1.0} and alone
    found, alone = classes_scores(scores, log, ["cat", "dog"], labels=True)
    assert set(found) == {1.0} and alone
    found, alone = classes_scores(labels, log, ["cat", "dog"], scores)  # labels against labels
    assert set(found) == {0.0} and alone


# Controls


def test_a_control_learns_its_share_of_the_log():
    log = a_log()
    others = pairs(list(paint([""] * 40, range(9000, 9040))), [f"other {k}" for k in range(40)])
    for rho in (0.25, 0.5, 1.0):
        learnt = control_pairs(log, rho, others)
        ours = sum(text.startswith("prompt") for text in learnt["text"])
        assert len(learnt) == 40 and ours == round(rho * 40)
    refused(lambda: control_pairs(log, 0.5), "control.others")
    assert isinstance(control_pairs(log), Dataset)


def test_losses_of_a_model_that_was_read_otherwise_are_not_taken_for_its_own():
    "Whether a network tells noise or velocity is no matter of its weights."
    pipe = open_suspect("mini-v1").pipe
    before = pipeline_name(pipe)
    pipe.scheduler.register_to_config(prediction_type="v_prediction")
    after = pipeline_name(pipe)
    assert before["weights"] == after["weights"] and before["read_by"] != after["read_by"]
    assert pipeline_name(open_suspect("mini-v1").pipe) == before


def test_chances_and_intervals():
    assert chance_to_find(1.645, 1.645) == pytest.approx(0.5)
    assert chance_to_find(3.29, 1.645) == pytest.approx(0.95, abs=0.001)
    assert found_interval(1, 1) == pytest.approx((0.025, 1.0))
    assert found_interval(0, 3) == pytest.approx((0.0, 1 - 0.025 ** (1 / 3)))


# The verdict


@pytest.mark.parametrize(
    "lead, control, state",
    [
        (1.0, None, "evidence"),
        (0.0, 1.0, "no evidence"),
        (0.0, 0.0, "cannot decide"),
        (0.0, None, "cannot decide"),
    ],
)
def test_the_verdict_is_chosen_by_the_numbers(case, lead, control, state):
    opened, found = case(lead, control)
    report = log_report.log_report(opened, found, "again", "file")
    assert report.verdict.state == state
    told = report.verdict.sentence
    assert {
        "evidence": "Evidence at",
        "no evidence": "No evidence",
        "cannot decide": "Cannot decide",
    }[state] in told
    assert not {"guilty", "innocent"} & set(told.lower().split())
    assert f"{found.verdict.p:.2g}" in told
    assert [test.p for test in report.tests][0] == found.verdict.p


def of_accounts(*names, withheld=None):
    "A log of 40 requests, so many of each account in turn."
    log = a_log()
    account = np.repeat([names[k * len(names) // 40] for k in range(40)], 3).astype(object)
    if withheld is not None:
        account[~log.released] = withheld
    return replace(log, account=account.astype(str))


def of_one(log, name, seed=2):
    "Scores of a suspect that knows one account's pictures, of which nobody else's log says anything."
    scores = np.random.default_rng(seed).normal(size=120)
    scores += 4 * (log.released & (log.account == name))
    return scores - 0.25 * log.released * (log.account != name)


def test_one_guilty_account_of_many_is_found_and_named(case):
    log = of_accounts(*(f"c{k}" for k in range(8)))
    opened, found = case(scores=of_one(log, "c5"), log=log)
    assert found.accounts.whole.p > 0.05 >= found.verdict.p, "among all others it hardly shows"
    report = log_report.log_report(opened, found, "again")
    assert report.verdict.state == "evidence"
    assert "trained on pictures released to c5: it knows these 5 better" in report.verdict.sentence
    assert "counted for all 8 accounts and the whole log" in report.verdict.sentence
    (part,) = [part for part in report.tests if part.name == "Accounts"]
    assert "Of 8 accounts: c5 (p = " in part.sentence and part.picture
    assert (
        "by itself p = " in report.tests[0].sentence and "account, c5," in report.tests[0].sentence
    )
    (gamma,) = [part for part in report.tests if part.name == "Sensitivity"]
    assert gamma.sentence.startswith("Of pictures released to c5: To explain") and found.gamma > 1
    (share,) = [part for part in report.tests if part.name == "Share of the log"]
    assert share.sentence.startswith("Of the whole log: ")


def test_the_p_of_an_accusation_is_that_of_the_account_and_not_of_the_log(case):
    "Everybody was learnt a little: the whole log's p is not what may be said of the one account named."
    log = of_accounts(*(f"c{k}" for k in range(4)))
    scores = np.random.default_rng(4).normal(size=120) + 0.8 * log.released
    opened, found = case(scores=scores, log=log)
    table = found.accounts.table
    named = table[table.adjusted <= 0.05]
    assert 0 < len(named) < 4 and named.adjusted.max() > 1.5 * found.verdict.p
    told = log_report.log_report(opened, found, "again").verdict.sentence
    p = f"{named.adjusted.max():.2g}"
    assert f"(p = {p})" in told and f"at most {p} of cases" in told


def test_one_account_whose_sides_differ_decides_nothing(case):
    "Its released pictures are darker, and the score is darkness: nothing was learnt."
    log = of_accounts("c0", "c1", "c2", "c3")
    images = log.images.copy()
    dark = log.released & (log.account == "c2")
    images[dark] = images[dark] // 4
    log = replace(log, images=images)
    opened, found = case(scores=-images.mean((1, 2, 3)), log=log)
    assert found.accounts.table.account[0] == "c2" and found.accounts.table.adjusted[0] <= 0.05
    report = log_report.log_report(opened, found, "again")
    assert found.blind.p <= 0.01 and report.verdict.state == "cannot decide"


def test_guards_listen_to_the_whole_log_and_to_its_accounts(case):
    log = of_accounts(*(f"c{k}" for k in range(8)))
    opened, _ = case(log=log)
    noise = np.random.default_rng(4).normal(size=120)
    for scores in (of_one(log, "c5"), noise + 0.5 * log.released):
        measured = Measured(scores, np.ones(120, bool), "simulated")
        verdict, accounts = log_audit._tested(opened, measured)
        least = min(verdict.p, accounts.whole.p)
        assert log_audit._sharper(opened, measured).p == least <= 0.02


def test_one_account_with_swapped_sides_stops_the_audit(case):
    log = of_accounts("c0", "c1")
    swapped = np.random.default_rng(3).normal(size=120)
    swapped += 3 * np.where(log.account == "c0", ~log.released, log.released)
    refused(lambda: case(scores=swapped, log=log), "withheld pictures of c0 better", "swapped")


def test_accounts_that_were_not_asked_are_told(case):
    log = of_accounts("ann", "bob", "cem", "dan")
    opened, _ = case(log=log)
    for names, told in ((["ann", "bob"], "Of 2 more no question"), (["ann"], "of ann alone")):
        there = np.isin(log.account, names)
        scores = np.random.default_rng(1).normal(size=there.sum())
        found = find_out(opened, Measured(scores, there, "simulated"))
        (part,) = [
            part
            for part in log_report.log_report(opened, found, "again").tests
            if part.name == "Accounts"
        ]
        assert told in part.sentence


def test_what_would_be_found_is_the_whole_log_s_own_lead(case):
    "The highest account's rarity says nothing of how a control varies."
    opened, found = case(0.0, control=1.0, log=of_accounts("ann", "bob"))
    opened_alone, alone = case(0.0, control=1.0)
    seen = [log_report._would_be_seen(*pair) for pair in ((opened, found), (opened_alone, alone))]
    leads = [float(re.search(r"lead of ([\d.]+)", told)[1]) for told in seen]
    assert leads[0] > leads[1], "two tests in one ask for more"


def test_several_guilty_accounts_are_named_and_nobody_is_where_only_the_log_leads(case):
    log = of_accounts(*(f"c{k}" for k in range(5)))
    noise = np.random.default_rng(4).normal(size=120)
    everyone = case(scores=noise + 3 * log.released, log=log)
    told = log_report.log_report(*everyone, "again").verdict.sentence
    assert "released to c" in told and "and 3 others: it knows these 40 better" in told
    little = case(scores=noise + 0.55 * log.released, log=log)
    report = log_report.log_report(*little, "again")
    assert little[1].verdict.p <= 0.05 < little[1].accounts.table.adjusted.min()
    assert "trained on pictures of the log: it knows" in report.verdict.sentence
    assert "(its accounts were tried, too) (p = " in report.verdict.sentence
    (part,) = [part for part in report.tests if part.name == "Accounts"]
    assert "nobody's by themselves" in part.sentence


def test_accounts_that_share_withheld_pictures_are_not_named_and_the_report_says_so(case):
    opened, found = case(1.0, log=of_accounts("ann", "bob", withheld=""))
    assert found.accounts is None
    report = log_report.log_report(opened, found, "again")
    assert report.verdict.state == "evidence" and "of the log" in report.verdict.sentence
    (part,) = [part for part in report.tests if part.name == "Accounts"]
    assert part.p is None and part.sentence.startswith("Not asked")


def test_a_log_of_one_account_is_tested_as_it_was(case):
    alone, plain = case(1.0, log=of_accounts("ann"))[1], case(1.0)[1]
    assert alone.accounts is None and alone.verdict.z == plain.verdict.z


def test_nothing_found_in_several_accounts_says_what_controls_cannot(case):
    opened, found = case(0.0, control=1.0, log=of_accounts("ann", "bob"))
    report = log_report.log_report(opened, found, "again")
    assert report.verdict.state == "no evidence"
    assert any("one account alone" in told for told in report.cannot_tell)


def test_sides_that_differ_without_a_suspect_decide_nothing(case):
    log = a_log()
    images = log.images.copy()
    images[log.released] = images[log.released] // 2  # darker on one side
    opened, found = case(1.0, log=replace(log, images=images))
    assert found.verdict.p <= 0.001 and found.blind.p <= 0.01
    report = log_report.log_report(opened, found, "again")
    assert report.verdict.state == "cannot decide"
    assert "told apart without any suspect" in report.verdict.sentence


def test_an_older_model_that_is_accused_too_decides_nothing(case):
    opened, found = case(1.0)
    opened.reference_name = "older"
    knowing = log_test(
        RNG.normal(size=120) + opened.log.released, opened.log.released, opened.log.block
    )
    report = log_report.log_report(opened, replace(found, older=knowing), "again")
    assert report.verdict.state == "cannot decide" and knowing.p <= 0.01 < 0.05
    assert "older, which should be older than the log, knows the" in report.verdict.sentence
    (part,) = [part for part in report.controls if part.name == "Older model"]
    assert part.p == knowing.p and not part.passed
    strange = log_test(RNG.normal(size=120), opened.log.released, opened.log.block)
    report = log_report.log_report(opened, replace(found, older=strange), "again")
    assert strange.p > 0.01 and report.verdict.state == "evidence"
    report = log_report.log_report(opened, found, "again")
    assert "Older model" not in [part.name for part in report.controls]


def test_the_older_model_is_asked_alone_and_only_where_it_was_compared_with(case, monkeypatch):
    opened, found = case(1.0)
    assert found.older is None  # no model is named
    scores, seen = RNG.normal(size=120), []

    def by_weights(asked, who, progress):
        seen.append((asked.reference, who.pipe))
        return scores

    monkeypatch.setattr(log_audit, "_SCORES", {"weights": by_weights})
    monkeypatch.setattr(log_audit, "pipeline_name", lambda pipe: {"weights": pipe})
    weights = replace(opened, access="weights")
    assert find_out(weights, found.measured).older is None and not seen  # there is none
    named = replace(weights, reference="the base", reference_name="base")
    older = find_out(named, found.measured).older
    assert seen == [(None, "the base")]
    assert older.p == log_test(scores, opened.log.released, opened.log.block, 999).p


@pytest.mark.parametrize("from_released, state", [(True, "cannot decide"), (False, "evidence")])
def test_an_older_model_is_asked_prompts_too(case, monkeypatch, from_released, state):
    "By captions that were written from released pictures, every model draws something like these."
    opened, found = case(1.0)
    log = opened.log
    released = dict(zip(np.array(log.texts)[log.released], log.images[log.released], strict=True))
    asked_for = []

    def older(prompts, seeds):
        asked_for.extend(prompts)
        drawn = np.stack([released[p] for p in prompts]) if from_released else paint(prompts, seeds)
        return np.clip(drawn.astype(int) + RNG.integers(-20, 20, drawn.shape), 0, 255).astype(
            np.uint8
        )

    monkeypatch.setattr(log_audit, "_own_model", lambda audit, name: Asked(older, {}))
    again = find_out(replace(opened, reference_name="the base"), found.measured)
    assert set(asked_for) == set(log.texts)  # as many answers as the suspect gave
    assert (again.older.p <= 0.01) == from_released
    assert log_report.log_report(opened, again, "again").verdict.state == state


def test_a_placebo_that_accuses_too_rarely_is_no_alarm(case):
    opened, found = case(1.0)
    for placebo, passed in ((np.ones(200), True), (np.full(200, 0.01), False)):
        report = log_report.log_report(opened, replace(found, placebo=placebo), "again")
        (part,) = [part for part in report.controls if part.name == "Placebo"]
        assert part.passed == passed


def test_pairs_are_no_reason_to_ask_more(case):
    opened, found = case(1.0)
    assert log_report.strongest_pairs(opened, found)

    def asked_again(*question):
        raise AssertionError("asked beyond the budget")

    opened = replace(opened, suspect=Asked(asked_again, {}))
    found.measured.answers = None  # by a score of one's own
    assert log_report.strongest_pairs(opened, found) == []


@pytest.mark.parametrize("access", ["weights", "pictures", "prompts"])
def test_every_way_to_ask_a_generator_has_controls(case, monkeypatch, access):
    opened, found = case(1.0)
    control = opened.audit.control.model_copy(update={"rhos": [1.0, 0.5]})
    opened = replace(
        opened, access=access, audit=opened.audit.model_copy(update={"control": control})
    )
    monkeypatch.setattr(log_audit, "_control_base", lambda opened: "mini-v1")
    monkeypatch.setattr(log_audit, "_control_generator", lambda opened, base, how, rho: rho)
    monkeypatch.setattr(
        log_audit, "_control_verdict", lambda opened, made, progress: f"asked {made}"
    )
    assert log_audit.run_controls(opened) == [(1.0, "asked 1.0"), (0.5, "asked 0.5")]
    monkeypatch.setattr(log_audit, "_control_base", lambda opened: None)
    assert log_audit.run_controls(opened) == []


def test_answers_that_are_off_by_a_row_are_noticed():
    log = a_log(20)
    mean = {t: log.images[np.array(log.texts) == t].mean(0) for t in log.prompts}
    noise = RNG.normal(0, 30, (20, 16, 16, 3))
    answers = np.clip([mean[t] for t in log.prompts] + noise, 0, 255).astype(np.uint8)
    assert prompts_fit(log, answers, log.prompts) == 0.001
    assert prompts_fit(log, answers, log.prompts[1:] + log.prompts[:1]) > 0.05
    strangers = [
        prompts_fit(log, paint(log.prompts, range(k, k + 20)), log.prompts)
        for k in range(1000, 5000, 20)
    ]
    assert 0.01 < np.mean(np.array(strangers) <= 0.05) < 0.1  # a p-value, for who heeds no prompt


def test_nothing_found_by_answers_to_other_prompts_decides_nothing(case):
    for fit, state in ((0.001, "no evidence"), (0.4, "cannot decide"), (None, "no evidence")):
        opened, found = case(0.0, 1.0)
        found.measured.fit = fit
        report = log_report.log_report(opened, found, "again")
        assert report.verdict.state == state
        assert ("off by a row" in report.verdict.sentence) == (state == "cannot decide")
    opened, found = case(1.0)
    found.measured.fit = 0.4
    assert log_report.log_report(opened, found, "again").verdict.state == "evidence"


def test_a_log_without_a_coin_promises_less(case):
    tossed = case(1.0)
    drawn = case(1.0, log=replace(a_log(), drawn="drawn now"))
    reports = [log_report.log_report(*each, "again") for each in (tossed, drawn)]
    said = ["no coin was tossed" in report.verdict.sentence for report in reports]
    doubted = ["no coin was tossed" in " ".join(report.cannot_tell) for report in reports]
    assumed = [
        [any("no coin" in told for told in part.assumes) for part in report.tests]
        for report in reports
    ]
    assert said == doubted == [False, True]
    assert assumed == [[False, False, False], [True, True, False]]  # the test, the share; not Γ
    assert all(len(report.tests[0].assumes) == 3 for report in reports)


@pytest.mark.parametrize("key, coin", [(False, log_report.COIN), (True, log_report.SECRET_COIN)])
def test_a_log_that_was_committed_is_said_to_be(case, key, coin):
    opened, found = case(1.0)
    plain = log_report.log_report(opened, found, "again")
    assert "held against no commitment" in " ".join(plain.cannot_tell)
    assert "log, committed" not in {fact.name for fact in plain.asked}
    opened.committed = Checked(lines=5, since=2, pictures=12, not_kept=0, key=key)
    report = log_report.log_report(opened, found, "again")
    (told,) = (fact.value for fact in report.asked if fact.name == "log, committed")
    assert told.startswith("5 committed lines are in order, and 2 since; 12 pictures")
    assert "no commitment" not in " ".join(report.cannot_tell)
    assert coin in report.tests[0].assumes and coin in report.tests[1].assumes


def test_a_report_says_what_lead_would_have_been_found(case):
    opened, found = case(1.0, log=(log := a_log()))
    told = log_report.log_report(opened, found, "again").tests[0].sentence
    (lead,) = re.findall(r"A lead of (\d\.\d\d) standard deviations would be found", told)
    rng, hits = np.random.default_rng(0), []
    for run in range(200):
        scores = rng.normal(size=len(log.texts)) + float(lead) * log.released
        hits.append(log_test(scores, log.released, log.block, 199, seed=run).p <= 0.05)
    assert abs(np.mean(hits) - 0.8) < 0.1


def test_swapped_sides_stop_the_audit(case):
    refused(lambda: case(-2.0), "withheld pictures better", "swapped")


def test_the_level_of_the_file_counts(case):
    opened, found = case(0.35)
    p = found.verdict.p
    assert 0.001 < p < 0.2
    states = {}
    for level in (p * 0.9, p * 1.1):
        again, same = case(0.35, level=level)
        states[level < p] = log_verdict.state_of(same, again.audit.test.level)
    assert states == {True: "cannot decide", False: "evidence"}


def test_pairs_show_the_best_known_pictures(case):
    log = a_log()
    scores = RNG.normal(size=120) * 0.01
    best = np.flatnonzero(log.released)[7]
    scores[best] += 9
    opened, found = case(scores=scores)
    first = log_report.strongest_pairs(opened, found, 2)[0]
    assert first.prompt == log.texts[best]
    with Image.open(io.BytesIO(first.released)) as shown:
        assert np.array_equal(np.asarray(shown), log.images[best])


# Before


def test_hopes_grow_with_the_log_and_with_the_share():
    few, many = (expected_power("weights", n).set_index("rho").chance for n in (20, 500))
    assert (many >= few).all() and few.is_monotonic_increasing
    more = expected_power("weights", 5000).set_index("rho").chance
    assert (more == many).all()  # nothing is promised beyond what was measured
    for access in ("classes", "labels"):
        assert expected_power(access, 100).set_index("rho").chance.is_monotonic_increasing
    assert expected_power("answers by post", 100).empty


def test_a_check_says_what_will_be_done(tmp_path):
    folder = imagefolder(tmp_path / "sent", sent(4), ["a", "b", "c", "c"])
    assert log_size(folder) == (4, 0, 3)
    file = tmp_path / "audit.yaml"
    file.write_text("owned: {model: mini-v1}\nreleased: {log: sent}\nsuspect: {model: mini-v2}\n")
    told = " ".join(outlook(read_audit(file)))
    assert (
        "exact" in told
        and "4 released pictures of 3 prompts" in told
        and "8 more will be drawn" in told
        and "if nobody chose what was sent" in told
    )
    assert "each of 12 pictures" in told
    told = " ".join(outlook(read_audit(file, {"suspect.access": "prompts", "control.rhos": "[]"})))
    assert "15 prompts" in told and "cannot decide" in told
    assert "Time: about" in told and "Cost:" not in told
    paid = {"suspect.access": "prompts", "test.price": "0.5", "test.questions": "7"}
    told = " ".join(outlook(read_audit(file, paid)))
    assert "6 questions at 0.5 each, 3.00 in all" in told
    file.write_text("suspect: {model: mini-v2}\n")
    assert "no guarantee" in " ".join(outlook(read_audit(file)))


# The command


def cli(*words):
    return CliRunner().invoke(command, [str(word) for word in words])


def test_new_check_and_mistakes(tmp_path):
    imagefolder(tmp_path / "sent", sent(4), ["a", "b", "c", "c"])
    made = cli(
        "new", tmp_path / "case", "--model", "mini-v2", "--owned", "mini-v1", "--log", "../sent"
    )
    assert made.exit_code == 0, made.output
    again = cli("new", tmp_path / "case", "--model", "mini-v2")
    assert again.exit_code == 2 and "is there already" in again.output
    file = tmp_path / "case" / "audit.yaml"
    checked = cli("check", file)
    assert checked.exit_code == 0 and "4 released pictures" in checked.output
    for wrong, told in (
        ("test.level=2", "test.level"),
        ("suspect.modle=x", "modle"),
        ("nothing", "KEY=VALUE"),
    ):
        result = cli("check", file, "-s", wrong)
        assert result.exit_code == 2 and told in result.output
    assert cli("run", tmp_path / "no.yaml").exit_code == 2
    assert sorted(p.name for p in file.parent.iterdir()) == ["audit.schema.json", "audit.yaml"]


def test_an_account_without_a_name_is_called_so():
    rows = {"text": ["a"] * 3, "released": [True, False, False], "block": ["r"] * 3}
    images = [
        {"bytes": encode(x, {"format": "PNG"}), "path": None} for x in paint([""] * 3, range(3))
    ]
    log = Dataset.from_dict({"image": images, **rows, "account": ["ann", "", None]})
    log = log.cast_column("image", DatasetsImage())
    assert as_audit_log(log).account.tolist() == ["ann", "(no name)", "(no name)"]
    assert as_audit_log(log.remove_columns("account")).account is None


def test_a_check_says_that_accounts_are_tried(tmp_path):
    service = Recorder(str(tmp_path / "log"), new_key(str(tmp_path / "key")), paint, {}, withheld=2)
    for who in ("ann", "bob"):
        for k in range(3):
            service.release(f"prompt {k}", who)
    file = tmp_path / "audit.yaml"
    file.write_text("released: {log: log}\nsuspect: {model: mini-v2, access: prompts}\n")
    assert "Accounts: 2." in " ".join(outlook(read_audit(file)))
    alone = read_audit(file, {"released.account": "ann"})
    assert "Accounts:" not in " ".join(outlook(alone))
