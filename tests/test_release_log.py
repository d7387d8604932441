"A log that can be shown: kept whole, tied to a key, dated, drawn again; and the guards of the test over it."

import base64
import hashlib
import hmac
import io
import itertools
import json
import multiprocessing
import os
import random
import time
from math import comb
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy import stats

from trainprove_nb.attribution.watermark import draw_message
from trainprove_nb.data.pairs import pixels
from trainprove_nb.evidence import guards
from trainprove_nb.evidence.commitment import commit, draw_again, replay, verify
from trainprove_nb.evidence.log_test import log_test, shuffled_labels
from trainprove_nb.evidence.redrawn_log import (
    as_log,
    draw_withheld,
    redraw,
    redraw_log,
    virtual_log,
)
from trainprove_nb.evidence.release_log import (
    COLUMNS,
    JOURNAL,
    Recorder,
    append_line,
    compact,
    encode,
    log_table,
    new_key,
    read_key,
    read_log,
    secret_coin,
    secret_seed,
    settings_of,
    weights_digest,
    whole_lines,
)

KEY = bytes(range(32))
FORK = multiprocessing.get_context("fork")


def noise(prompts, seeds, size=16):
    "A toy service: pictures of smooth noise."
    grids = [np.random.default_rng(s).integers(0, 256, (4, 4, 3)) for s in seeds]
    small = [Image.fromarray(g.astype(np.uint8)) for g in grids]
    return np.stack([np.asarray(x.resize((size, size), Image.BICUBIC)) for x in small])


def recorder(folder, **changed):
    return Recorder(folder, **{"key": KEY, "draw": noise, "settings": {"steps": 5}, **changed})


@pytest.fixture
def log(tmp_path):
    "A log of five requests of three prompts."
    keeper = recorder(tmp_path / "log")
    for k, prompt in enumerate(["cat", "dog", "cat", "bird", "dog"]):
        keeper.release(prompt, f"account {k % 2}")
    return tmp_path / "log"


# The key


def test_a_key_comes_back_and_only_its_owner_can_read_it(tmp_path):
    file = tmp_path / "key"
    key = new_key(file)
    assert len(key) == 32 and read_key(file) == key and file.stat().st_mode & 0o777 == 0o600
    assert new_key(tmp_path / "other") != key
    with pytest.raises(FileExistsError, match="is there already"):
        new_key(file)
    assert read_key(file) == key
    file.chmod(0o640)
    with pytest.raises(ValueError, match="others can read"):
        read_key(file)


@pytest.mark.parametrize("content", [b"", b"abc", b"00" * 31, b"00" * 33, b"zz" * 32, b"\xff" * 64])
def test_what_is_no_key_is_refused(tmp_path, content):
    (tmp_path / "key").write_bytes(content)
    (tmp_path / "key").chmod(0o600)
    with pytest.raises(ValueError, match="holds no key"):
        read_key(tmp_path / "key")


def test_seeds_and_coins_are_hmacs():
    def by_hand(text):
        inner = hashlib.sha256(bytes(k ^ 0x36 for k in KEY + bytes(32)) + text).digest()
        outer = hashlib.sha256(bytes(k ^ 0x5C for k in KEY + bytes(32)) + inner).digest()
        return int.from_bytes(outer[:8], "big") // 2

    assert secret_seed(KEY, "me", "r1", 2) == by_hand(b'["seed", "me", "r1", 2]')
    assert secret_coin(KEY, "me", "r1", 4) == by_hand(b'["coin", "me", "r1"]') % 4
    library = hmac.new(KEY, b'["seed", "me", "r1", 2]', "sha256").digest()
    assert secret_seed(KEY, "me", "r1", 2) == int.from_bytes(library[:8], "big") >> 1


def test_no_two_roles_share_a_seed():
    roles = itertools.product([KEY, KEY[::-1]], ["a", "b", 'a", "b'], ["a", "b", "1"], [0, 1, 11])
    assert len({secret_seed(*role) for role in roles}) == 54


def test_the_coin_is_fair():
    coins = np.bincount([secret_coin(KEY, "me", str(k), 4) for k in range(4000)], minlength=4)
    assert stats.chisquare(coins).pvalue > 0.001


# Kept


def test_what_was_given_is_what_the_log_says(tmp_path):
    keeper = recorder(tmp_path, withheld=2, encoder={"format": "JPEG", "quality": 80})
    given = [keeper.release(f"prompt {k}", "me") for k in range(8)]
    table = log_table(tmp_path)
    assert list(table) == COLUMNS and len(table) == 24 and table.request.nunique() == 8
    released = table[table.side == "released"]
    assert released.sha256.tolist() == [hashlib.sha256(file).hexdigest() for file in given]
    assert [(tmp_path / f).read_bytes() for f in released.file] == given
    assert released.prompt.tolist() == [f"prompt {k}" for k in range(8)]
    assert released["index"].nunique() > 1  # not always the first
    for row in table.itertuples():
        assert row.seed == secret_seed(KEY, "me", row.request, row.index)
        (picture,) = noise([row.prompt], [row.seed])
        assert (tmp_path / row.file).read_bytes() == encode(
            picture, {"format": "JPEG", "quality": 80}
        )
        assert json.loads(row.settings) == {
            "steps": 5,
            "encoder": {"format": "JPEG", "quality": 80},
        }
    assert released["index"].tolist() == [secret_coin(KEY, "me", r, 3) for r in released.request]
    assert pd.to_datetime(table.time).dt.tz is not None


def test_all_pictures_of_a_request_are_drawn_at_once(tmp_path):
    calls = []

    def draw(prompts, seeds):
        calls.append((prompts, len(set(seeds))))
        return noise(prompts, seeds)

    recorder(tmp_path, draw=draw).release("cat", "me")
    assert calls == [(["cat"] * 4, 4)]


def test_the_log_has_a_picture_before_it_is_given(tmp_path, monkeypatch):
    "Nothing goes out when the line cannot be written."
    keeper = recorder(tmp_path)

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr("trainprove_nb.evidence.release_log.append_line", full)
    with pytest.raises(OSError, match="disk full"):
        keeper.release("cat", "me")
    assert len(whole_lines(tmp_path)) == 1


def test_no_file_of_a_log_holds_the_key(log):
    compact(log)
    forms = [KEY, KEY[:16], KEY.hex().encode(), KEY.hex().upper().encode()]
    forms.append(base64.b64encode(KEY)[:40])
    written = [p for p in log.rglob("*") if p.is_file()]
    assert len(written) > 20
    assert not [p for p in written if any(form in p.read_bytes() for form in forms)]


def test_a_log_goes_on_with_its_key_and_no_other(log):
    recorder(log).release("house", "me")
    assert log_table(log).request.nunique() == 6
    with pytest.raises(ValueError, match="begun with another key"):
        recorder(log, key=KEY[::-1])


@pytest.mark.parametrize(
    "changed, sentence",
    [
        ({"key": b"short"}, "a key of 5 bytes"),
        ({"withheld": 0}, "withheld=0"),
        ({"encoder": {"format": "GIF"}}, "'GIF'"),
        ({"encoder": {"quality": 3}}, "None"),
    ],
)
def test_a_recorder_that_cannot_keep_a_log_is_refused(tmp_path, changed, sentence):
    with pytest.raises(ValueError, match=sentence):
        recorder(tmp_path / "log", **changed)
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize("prompt, account", [("", "me"), (None, "me"), ("cat", " "), ("cat", 7)])
def test_a_request_without_texts_is_refused(tmp_path, prompt, account):
    keeper = recorder(tmp_path)
    with pytest.raises(ValueError, match="a text is needed"):
        keeper.release(prompt, account)
    assert len(whole_lines(tmp_path)) == 1


@pytest.mark.parametrize(
    "answer",
    [
        lambda p, s: noise(p, s)[:2],
        lambda p, s: noise(p, s) / 255,
        lambda p, s: noise(p, s)[..., 0],
        lambda p, s: None,
    ],
)
def test_a_draw_that_misbehaves_is_refused(tmp_path, answer):
    keeper = recorder(tmp_path, draw=answer)
    with pytest.raises(ValueError, match="draw gave"):
        keeper.release("cat", "me")
    assert len(whole_lines(tmp_path)) == 1


# Killed


@pytest.mark.parametrize("left", range(1, 60, 7))
def test_half_a_line_is_no_line(log, left):
    lines = whole_lines(log)
    whole = (log / JOURNAL).read_bytes()
    cut = len(lines[-1]) * left // 60
    (log / JOURNAL).write_bytes(whole[: len(whole) - 1 - len(lines[-1]) + cut])
    assert whole_lines(log) == lines[:-1]
    recorder(log).release("house", "me")
    assert whole_lines(log)[:-1] == lines[:-1]
    assert verify(log, commit(log), KEY).lines == len(lines)


def test_an_unfinished_first_line_is_begun_again(tmp_path):
    (tmp_path / JOURNAL).write_bytes(b'{"line": 0, "prev')
    recorder(tmp_path).release("cat", "me")
    assert verify(tmp_path, commit(tmp_path), KEY).pictures == 4


def serve(folder, out):
    "Give pictures until killed, and tell which were given."
    keeper = recorder(folder, withheld=1)
    while True:
        file = keeper.release("cat", "me")
        os.write(out, hashlib.sha256(file).digest())


def test_kills_lose_nothing_that_was_given(tmp_path):
    chance, given = random.Random(0), b""
    for kill in range(12):
        read, write = os.pipe()
        worker = FORK.Process(target=serve, args=(tmp_path, write))
        worker.start()
        os.close(write)
        with open(read, "rb") as f:
            given += f.read(32 * (kill % 5))  # it is at work
            time.sleep(chance.uniform(0, 0.02))
            worker.kill()
            worker.join()
            given += f.read()
    told = {given[k : k + 32].hex() for k in range(0, len(given), 32)}
    table = log_table(tmp_path)
    recorded = set(table.sha256[table.side == "released"])
    assert len(told) >= 21 and told <= recorded and len(recorded) <= len(told) + 12
    assert verify(tmp_path, commit(tmp_path), KEY).pictures == len(table)


def write_some(folder, together):
    keeper = recorder(folder, withheld=1)
    together.wait()
    for k in range(40):
        append_line(folder, {"request": k})
    keeper.release("cat", str(os.getpid()))


def test_workers_share_a_log(tmp_path):
    together = FORK.Barrier(4)
    workers = [FORK.Process(target=write_some, args=(tmp_path, together)) for _ in range(4)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    entries = [json.loads(line) for line in whole_lines(tmp_path)]
    assert [e["line"] for e in entries] == list(range(165))
    assert len({e["account"] for e in entries if "account" in e}) == 4
    assert json.loads(commit(tmp_path))["lines"] == 165


def test_lines_of_any_length_and_letters(tmp_path):
    texts = ["", "a\nb\r\u2028", "é" * 70000, '"}\n{"']
    for text in texts:
        append_line(tmp_path, {"text": text})
    assert [json.loads(line)["text"] for line in whole_lines(tmp_path)] == texts


# Read


def test_a_log_is_read_with_its_pictures(log):
    read, table = read_log(log), log_table(log)
    assert (pixels(read) == noise(table.prompt, table.seed)).all()
    assert read["text"][:] == table.prompt.tolist() and read["block"][:] == table.request.tolist()
    assert read["released"][:] == (table.side == "released").tolist()
    mine = read_log(log, account="account 1")
    assert set(mine["account"]) == {"account 1"} and len(mine) == 8
    assert log_test(pixels(read).mean((1, 2, 3)), read["released"], read["block"]).prompts == 5


def test_a_compacted_log_reads_the_same(log):
    table, read = log_table(log), read_log(log)
    assert compact(log) == log / "log.parquet"
    (log / JOURNAL).unlink()
    pd.testing.assert_frame_equal(log_table(log), table, check_dtype=False)
    assert read_log(log)[:] == read[:]


def by_hand(log, change):
    "The log as somebody keeps it who has no recorder, changed."
    table = log_table(log)
    (log / JOURNAL).unlink()
    change(table)
    table.to_parquet(log / "log.parquet")


def repaint(log, rows, paint):
    "Other pictures in some rows of a log, with their digests."
    for k in rows.index:
        old = Image.open(log / rows.file[k])
        file = io.BytesIO()
        paint(old, file)
        (log / f"pictures/{k}.new").write_bytes(file.getvalue())
        rows.loc[k, ["file", "sha256"]] = [
            f"pictures/{k}.new",
            hashlib.sha256(file.getvalue()).hexdigest(),
        ]
    return rows


def to_jpeg(old, file):
    old.save(file, "JPEG")


def larger(old, file):
    old.resize((17, 17)).save(file, "PNG")


@pytest.mark.parametrize("paint, sentence", [(to_jpeg, "JPEG.*PNG"), (larger, "16×16.*17×17")])
@pytest.mark.parametrize("side", ["released", "withheld"])
def test_sides_that_were_encoded_otherwise_are_refused(log, paint, sentence, side):
    by_hand(log, lambda t: t.update(repaint(log, t[t.side == side].copy(), paint)))
    with pytest.raises(ValueError, match=f"two kinds of file.*{sentence}"):
        read_log(log)
    by_hand_again = pd.read_parquet(log / "log.parquet")
    rest = by_hand_again[by_hand_again.side != side].copy()
    by_hand_again.update(repaint(log, rest, paint))
    by_hand_again.to_parquet(log / "log.parquet")
    assert len(read_log(log)) == 20  # both sides alike again


@pytest.mark.parametrize("side", ["released", "withheld"])
def test_a_jpeg_of_another_quality_is_refused(log, side):
    def encoded(quality):
        return lambda old, file: old.save(file, "JPEG", quality=quality)

    by_hand(log, lambda t: t.update(repaint(log, t.copy(), encoded(90))))
    assert len(read_log(log)) == 20
    table = pd.read_parquet(log / "log.parquet")
    table.update(repaint(log, table[table.side == side].copy(), encoded(75)))
    table.to_parquet(log / "log.parquet")
    with pytest.raises(ValueError, match="two kinds of file.*JPEG by tables"):
        read_log(log)


@pytest.mark.parametrize(
    "request_of",
    [
        lambda k, row: "",
        lambda k, row: None,
        lambda k, row: str(k % 4 // 2),
        lambda k, row: row.prompt[:2],
    ],
)
def test_requests_that_do_not_tell_prompts_apart_are_no_blocks(log, request_of):
    "Else labels would be shuffled between prompts, and prompts that were asked often accuse innocents."

    def change(table):
        table["request"] = [request_of(k, row) for k, row in enumerate(table.itertuples())]

    by_hand(log, change)
    found = read_log(log)
    assert found["block"][:] == found["text"][:]


def test_a_table_by_hand_may_leave_fields_empty(log):
    def change(table):
        table["account"] = table["time"] = table["settings"] = None

    by_hand(log, change)
    assert len(read_log(log)) == 20
    by_hand_again = pd.read_parquet(log / "log.parquet")
    by_hand_again["settings"] = [{"steps": 5}] * len(by_hand_again)
    by_hand_again.to_parquet(log / "log.parquet")
    assert len(read_log(log)) == 20
    by_hand_again["file"] = None
    by_hand_again.to_parquet(log / "log.parquet")
    with pytest.raises(ValueError, match="keeps no pictures"):
        read_log(log)


def test_sides_of_other_settings_are_refused(log):
    def change(table):
        table.loc[table.side == "withheld", "settings"] = '{"steps": 6}'

    by_hand(log, change)
    with pytest.raises(ValueError, match="two settings.*steps"):
        read_log(log)


def test_a_block_of_one_side_is_refused(log):
    def change(table):
        table.loc[(table.prompt == "bird") & (table.side == "released"), "side"] = "withheld"

    by_hand(log, change)
    with pytest.raises(ValueError, match="'bird' has pictures of one side only"):
        read_log(log)


def test_without_requests_a_prompt_is_one_block(log):
    "Withheld pictures that belong to no request are compared with all that was released of the prompt."

    def change(table):
        table.loc[table.side == "withheld", "request"] = ""

    by_hand(log, change)
    read = read_log(log)
    assert read["block"][:] == read["text"][:] and len(set(read["block"])) == 3


@pytest.mark.parametrize("sides", [("released", "withheld"), ("withheld", "withheld")])
def test_a_prompt_with_a_picture_twice_is_left_out_whatever_the_labels(log, sides):
    def change(table):
        cats = table[table.prompt == "cat"]
        one, other = (cats.index[cats.side == side][k] for k, side in enumerate(sides))
        table.loc[one, ["file", "sha256"]] = table.loc[other, ["file", "sha256"]]

    by_hand(log, change)
    with pytest.warns(UserWarning, match="1 of 3 prompts left out"):
        read = read_log(log)
    assert set(read["text"]) == {"dog", "bird"} and len(read) == 12


def test_a_watermark_s_message_comes_from_a_key_as_its_page_says(tmp_path):
    keys = [new_key(tmp_path / name) for name in "ab"]
    messages = [draw_message(secret_seed(key, "watermark", "message", 0)) for key in keys]
    assert (messages[0] == draw_message(secret_seed(keys[0], "watermark", "message", 0))).all()
    assert (messages[0] != messages[1]).any() and set(messages[0]) == {0, 1}


@pytest.mark.parametrize("theirs", ["released", "withheld"])
def test_a_prompt_of_which_another_account_has_a_picture_too_is_left_out(log, theirs):
    assert set(read_log(log, "account 0")["text"]) == {"cat", "dog"}
    table = log_table(log)
    cat = table[(table.prompt == "cat") & (table.side == theirs)].iloc[:1]
    table = pd.concat([table, cat.assign(account="bob", request="bob's")], ignore_index=True)
    (log / JOURNAL).unlink()
    table.to_parquet(log / "log.parquet")
    with pytest.warns(UserWarning, match="1 of 2 prompts left out.* another account has it too"):
        assert set(read_log(log, "account 0")["text"]) == {"dog"}
    table.loc[table.account == "bob", "sha256"] = "1" * 64  # another picture of it does no harm
    table.to_parquet(log / "log.parquet")
    assert set(read_log(log, "account 0")["text"]) == {"cat", "dog"}


def test_pictures_of_two_prompts_may_be_equal(log):
    def change(table):
        table.loc[0, ["file", "sha256"]] = table.loc[4, ["file", "sha256"]]

    by_hand(log, change)
    assert len(read_log(log)) == 20


def test_what_cannot_be_read_is_refused_by_name(log, tmp_path):
    with pytest.raises(FileNotFoundError, match="no log in"):
        log_table(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no lines.jsonl"):
        whole_lines(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="nothing of nobody"):
        read_log(log, account="nobody")
    picture = log / log_table(log).file[6]
    was = picture.read_bytes()
    picture.write_bytes(was + b" ")
    with pytest.raises(ValueError, match=f"{picture.name} is not the picture that was logged"):
        read_log(log)
    picture.unlink()
    with pytest.raises(ValueError, match=f"{picture.name} is not there"):
        read_log(log)
    pd.DataFrame({"prompt": ["cat"]}).to_parquet(tmp_path / "log.parquet")
    with pytest.raises(ValueError, match=r"lacks the column\(s\) account, time"):
        log_table(tmp_path)
    lines = (log / JOURNAL).read_bytes().split(b"\n")
    (log / JOURNAL).write_bytes(b"\n".join([*lines[:3], b"{}", *lines[3:]]))
    with pytest.raises(ValueError, match="line 3 of .* cannot be read"):
        log_table(log)


def toy_pipe(value=0.5, dtype=torch.float32):
    layer = torch.nn.Linear(2, 2).to(dtype)
    torch.nn.init.constant_(layer.weight, value)
    torch.nn.init.constant_(layer.bias, 0)
    return SimpleNamespace(
        components={"unet": layer, "scheduler": object()}, device=torch.device("cpu")
    )


def test_settings_name_the_weights():
    assert weights_digest(toy_pipe()) == weights_digest(toy_pipe())
    assert weights_digest(toy_pipe()) != weights_digest(toy_pipe(0.50001))
    assert weights_digest(toy_pipe(dtype=torch.bfloat16)) != weights_digest(toy_pipe())
    told = settings_of(toy_pipe(), steps=3)
    assert told["steps"] == 3 and told["torch"] == torch.__version__
    assert json.loads(json.dumps(told)) == told


# Committed


def edit(k, old, new):
    def change(log, lines):
        assert old in lines[k]
        lines[k] = lines[k].replace(old, new, 1)

    return change


def relink(lines, start=1):
    "Mend the chain from a line on, as a forger would who may write everything."
    for k in range(start, len(lines)):
        entry = json.loads(lines[k])
        entry |= {"line": k, "previous": hashlib.sha256(lines[k - 1]).hexdigest()}
        lines[k] = json.dumps(entry).encode()


def drop(k):
    return lambda log, lines: lines.pop(k)


def add(k, of):
    return lambda log, lines: lines.insert(k, lines[of])


def exchange(log, lines):
    lines[2], lines[3] = lines[3], lines[2]


def forge(k):
    def change(log, lines):
        edit(k, b'"prompt": "', b'"prompt": "a ')(log, lines)
        relink(lines, k + 1)

    return change


def spoil(log, lines):
    lines[2] = lines[2][:40]


def drop_and_relink(log, lines):
    lines.pop(2)
    relink(lines)


TAMPERING = [
    (edit(2, b"dog", b"cow"), "line 2 was changed"),
    (edit(5, b"account 0", b"account 1"), "line 5, the last that was committed, was changed"),
    (edit(0, b'"key": "', b'"key": "0'), "line 0 was changed"),
    (edit(3, b'"time": "2', b'"time": "1'), "line 3 was changed"),
    (edit(1, b'"seed": ', b'"seed": 1'), "line 1 was changed"),
    (drop(0), "line 0 is missing"),
    (drop(3), "line 3 is missing"),
    (drop(5), "line 5 is missing: 6 lines were committed"),
    (add(3, 2), "line 3 was added"),
    (add(1, 4), "line 1 is missing"),
    (exchange, "line 2 is missing"),
    (spoil, "line 2 was changed: it is no line"),
    (forge(1), "line 5, the last that was committed, was changed"),
    (drop_and_relink, "line 5 is missing"),
]


@pytest.mark.parametrize("change, sentence", TAMPERING)
def test_tampering_is_caught_and_named(log, change, sentence):
    committed, lines = commit(log), whole_lines(log)
    verify(log, committed, KEY)
    change(log, lines)
    (log / JOURNAL).write_bytes(b"\n".join(lines) + b"\n")
    for key in (None, KEY):
        with pytest.raises(ValueError, match=sentence):
            verify(log, committed, key)


def test_changed_and_lost_pictures_are_named(log):
    committed = commit(log)
    entry = json.loads(whole_lines(log)[4])
    picture = log / entry["pictures"][2]["file"]
    was = picture.read_bytes()
    picture.write_bytes(was[:-1] + bytes([was[-1] ^ 1]))
    with pytest.raises(ValueError, match="picture 2 of line 4 .* was changed"):
        verify(log, committed)
    picture.unlink()
    with pytest.raises(ValueError, match="picture 2 of line 4 .* is missing"):
        verify(log, committed)
    picture.write_bytes(was)
    assert verify(log, committed).pictures == 20


def test_a_wrong_key_is_refused(log):
    with pytest.raises(ValueError, match="not the key that the log was begun with"):
        verify(log, commit(log), KEY[::-1])


def flip(log, lines):
    "Another picture of the second request as the released one."
    entry = json.loads(lines[2])
    (given,) = [p for p in entry["pictures"] if p["side"] == "released"]
    other = next(p for p in entry["pictures"] if p["side"] == "withheld")
    given["side"], other["side"] = "withheld", "released"
    lines[2] = json.dumps(entry).encode()


def reseed(log, lines):
    entry = json.loads(lines[2])
    entry["pictures"][1]["seed"] += 1
    lines[2] = json.dumps(entry).encode()


def rename(log, lines):
    lines[2] = lines[2].replace(b"account 1", b"account 0")


@pytest.mark.parametrize(
    "change, sentence",
    [
        (flip, "line 2 says that picture .* was released: the coin chose"),
        (reseed, "the seed of picture 1 of line 2 is not of this key"),
        (rename, "the seed of picture 0 of line 2 is not of this key"),
    ],
)
def test_a_log_that_was_false_from_the_start_meets_the_key(log, change, sentence):
    lines = whole_lines(log)
    change(log, lines)
    relink(lines)
    (log / JOURNAL).write_bytes(b"\n".join(lines) + b"\n")
    committed = commit(log)
    assert not verify(log, committed).key
    with pytest.raises(ValueError, match=sentence):
        verify(log, committed, KEY)


def test_a_log_may_grow_after_its_commitment(log):
    committed = commit(log)
    recorder(log).release("house", "me")
    checked = verify(log, committed, KEY)
    assert (checked.lines, checked.since, checked.pictures, checked.key) == (6, 1, 24, True)
    assert json.loads(committed)["digest"] != json.loads(commit(log))["digest"]
    assert commit(log) == commit(log)
    (log / JOURNAL).open("ab").write(b'{"half')
    assert verify(log, committed, KEY).since == 1


def test_a_chains_digest_by_hand(log):
    lines = (log / JOURNAL).read_bytes().splitlines()
    assert json.loads(commit(log)) == {
        "log": "release log 1",
        "lines": 6,
        "key": hashlib.sha256(KEY).hexdigest(),
        "digest": hashlib.sha256(lines[-1]).hexdigest(),
    }
    assert json.loads(lines[4])["previous"] == hashlib.sha256(lines[3]).hexdigest()


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"log": "other"}', "nothing"])
def test_what_is_no_commitment_is_refused(log, text):
    with pytest.raises(ValueError, match="is no commitment"):
        verify(log, text)


def test_an_empty_log_is_not_committed(tmp_path):
    recorder(tmp_path)
    with pytest.raises(ValueError, match="holds no request yet"):
        commit(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    for _ in range(2):
        append_line(other, {"word": "hello"})
    with pytest.raises(ValueError, match="line 0 was changed"):
        commit(other)


# Drawn again


def test_replay_finds_the_same_and_others(log):
    found = replay(log, noise)
    assert found.same.all() and (found.off == 0).all() and len(found) == 20

    def other(prompts, seeds):
        return noise(prompts, [s + (k == 0) for k, s in enumerate(seeds)])

    found = replay(log, other)
    assert (found.same == (found["index"] != 0)).all() and (found.off[~found.same] > 20).all()
    one = log_table(log).request[0]
    assert set(replay(log, noise, requests=[one]).request) == {one}
    with pytest.raises(ValueError, match="none of these requests"):
        replay(log, noise, requests=["none"])


def test_replay_draws_requests_as_they_were_drawn(log):
    sizes = []

    def draw(prompts, seeds):
        sizes.append(len(seeds))
        return noise(prompts, seeds)

    replay(log, draw)
    assert sizes == [4] * 5


def test_a_log_without_pictures_is_drawn_again(tmp_path):
    keeper = recorder(tmp_path, keep=False, encoder={"format": "JPEG", "quality": 70})
    given = [keeper.release(p, "me") for p in ("cat", "dog")]
    assert not list((tmp_path / "pictures").iterdir())
    checked = verify(tmp_path, commit(tmp_path), KEY)
    assert (checked.pictures, checked.not_kept) == (0, 8)
    with pytest.raises(ValueError, match="keeps no pictures"):
        read_log(tmp_path)
    found = replay(tmp_path, noise)
    assert found.same.all() and found.off.isna().all()
    again = redraw_log(tmp_path, noise, account="me")
    sent = [np.asarray(Image.open(io.BytesIO(file))) for file in given]
    assert (pixels(again)[np.array(again["released"])] == np.stack(sent)).all()
    with pytest.raises(ValueError, match="nothing of you"):
        redraw_log(tmp_path, noise, account="you")


def test_settings_are_drawn_again_one_at_a_time(log):
    recorder(log, settings={"steps": 6}).release("cat", "me")
    with pytest.raises(ValueError, match="2 settings"):
        replay(log, noise)
    table = log_table(log)
    six = table[table.settings.str.contains('"steps": 6')]
    assert len(draw_again(six, noise)) == 4 and replay(log, noise, set(six.request)).same.all()


def test_prompts_and_seeds_make_a_log():
    made = redraw(["cat", "dog", "cat"], [5, 6, 7], noise, withheld=2)
    released = np.array(made["released"])
    assert (pixels(made)[released] == noise([""] * 3, [5, 6, 7])).all()
    assert made["text"][:] == ["cat"] * 3 + ["dog"] * 3 + ["cat"] * 3
    assert made["block"][:] == list("000111222")
    assert len({x.tobytes() for x in pixels(made)}) == 9  # all others are fresh
    again = redraw(["cat", "dog", "cat"], [5, 6, 7], noise, withheld=2)
    assert (pixels(again)[~released] != pixels(made)[~released]).any((1, 2, 3)).all()


def test_pictures_and_prompts_make_a_log():
    jpeg = {"format": "JPEG", "quality": 70}
    sent = [encode(x, jpeg) for x in noise([""] * 2, [1, 2])]
    made = draw_withheld(sent, ["cat", "dog"], noise, withheld=1, encoder=jpeg)
    assert made["released"][:] == [True, False, True, False] and made["block"][:] == list("0011")
    assert (pixels(made)[0] == np.asarray(Image.open(io.BytesIO(sent[0])))).all()
    assert made["image"][1].format == made["image"][0].format == "JPEG"
    arrays = draw_withheld(noise([""] * 2, [1, 2]), ["cat", "dog"], noise)
    assert (pixels(arrays)[[0, 4]] == noise([""] * 2, [1, 2])).all()
    with pytest.raises(ValueError, match="JPEG .* a fresh one PNG"):
        draw_withheld(sent, ["cat", "dog"], noise)
    with pytest.raises(ValueError, match=r"\(17, 17\)"):
        draw_withheld(noise([""], [1], size=17), ["cat"], noise)


def test_a_key_makes_a_log():
    made = virtual_log(KEY, "me", ["cat", "dog"], noise, withheld=2, times=2)
    assert made["released"][:] == [True, True, False, False] * 2
    seeds = [secret_seed(KEY, "me", p, c) for p in ("cat", "dog") for c in (0, 1)]
    assert (pixels(made)[np.array(made["released"])] == noise([""] * 4, seeds)).all()
    decoys = {x.tobytes() for x in pixels(made)[~np.array(made["released"])]}
    ever = [secret_seed(KEY, "me", p, c) for p in ("cat", "dog") for c in range(50)]
    assert len(decoys) == 4 and not decoys & {x.tobytes() for x in noise([""] * 100, ever)}
    other = virtual_log(KEY, "you", ["cat", "dog"], noise, withheld=2, times=2)
    assert (pixels(made) != pixels(other)).any((1, 2, 3)).all()


def virtual_p(right, run):
    "A suspect that learnt what the key gave for twelve prompts, of which so many are guessed."
    rng = np.random.default_rng(run)
    key, prompts = rng.bytes(32), [str(k) for k in range(12)]
    made = virtual_log(key, "me", prompts, noise, withheld=1)
    learnt = noise([""] * 12, [secret_seed(key, "me", p, 0) for p in prompts])
    off = np.abs(pixels(made) / 255 - np.repeat(learnt / 255, 2, axis=0)).mean((1, 2, 3))
    known = np.arange(24) < 2 * right
    scores = rng.normal(size=24) - 12 * off * known
    return log_test(scores, made["released"], made["block"], draws=99, seed=run).p


def test_wrong_guesses_cost_power_and_nothing_else():
    p = {right: np.array([virtual_p(right, run) for run in range(40)]) for right in (12, 4, 0)}
    found = {right: (x <= 0.05).mean() for right, x in p.items()}
    assert found[12] > 0.95 and 0.2 < found[4] < 0.95 and found[0] <= 0.15


@pytest.mark.parametrize(
    "make, sentence",
    [
        (lambda: redraw(["cat"], [1, 2], noise), "1 prompts and 2 seeds"),
        (lambda: redraw([], [], noise), "0 prompts"),
        (lambda: redraw(["cat"], [1], noise, withheld=0), "withheld=0"),
        (lambda: redraw(["cat", "cat"], [1, 1], noise), "twice with one seed"),
        (lambda: draw_withheld([b""], ["cat", "dog"], noise), "2 prompts and 1 pictures"),
        (lambda: virtual_log(KEY, "me", ["cat", "cat"], noise), "2 prompts, 1 different"),
        (lambda: virtual_log(KEY, "me", [], noise), "0 prompts"),
        (lambda: virtual_log(KEY, "me", ["cat"], noise, withheld=0), "withheld=0"),
        (lambda: as_log([b""], ["cat"], [True, False], ["a"]), "1 files, 1 prompts, 2 labels"),
    ],
)
def test_half_a_log_that_does_not_fit_is_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


# The guards: the blind baseline


def labelled(rng, prompts, size=4, given=1):
    "Labels by chance and prompts."
    order = rng.permuted(np.tile(np.arange(size), (prompts, 1)), axis=1)
    return (order < given).ravel(), np.repeat(np.arange(prompts), size)


def test_the_blind_baseline_keeps_its_level_where_a_score_as_it_is_does_not():
    exact, naive = [], []
    for run in range(160):
        rng = np.random.default_rng(run)
        released, block = labelled(rng, 40)
        features = rng.normal(size=(160, 15))
        exact.append(guards.blind_test(features, released, block, draws=99, seed=run).p)
        (scores,) = guards.blind_scores(features, released[None], block)
        naive.append(log_test(scores, released, block, draws=99, seed=run).p)
    exact, naive = np.array(exact), np.array(naive)
    assert stats.binomtest(int((exact <= 0.05).sum()), 160, 0.05).pvalue > 0.01
    assert stats.kstest(exact, "uniform").pvalue > 0.01
    assert (naive <= 0.05).mean() > 0.075


def test_no_picture_is_scored_by_its_own_label():
    rng = np.random.default_rng(0)
    released, block = labelled(rng, 10)
    features = rng.normal(size=(40, 5))
    labels = np.stack([released, released])
    labels[1, :4] = np.roll(labels[1, :4], 1)  # another picture of the first prompt
    one, other = guards.blind_scores(features, labels, block)
    assert np.allclose(one[:4], other[:4]) and (np.abs(one[4:] - other[4:]) > 1e-9).sum() > 20
    assert np.allclose(guards.blind_scores(features, labels[1:], block)[0], other)


def smooth_pictures(n):
    return noise([""] * n, range(n), size=32)


def test_the_blind_baseline_sees_jpeg_on_one_side_and_nothing_else():
    pictures = smooth_pictures(120)
    released, block = labelled(np.random.default_rng(0), 30)
    files = [encode(x, {"format": "JPEG", "quality": 85}) for x in pictures]
    jpegs = np.stack([np.asarray(Image.open(io.BytesIO(f))) for f in files])
    for side in (released, ~released):
        mixed = np.where(side[:, None, None, None], jpegs, pictures)
        seen = guards.blind_test(guards.picture_features(mixed), released, block, draws=199)
        assert seen.p == 0.005 and seen.z > 4
    for alike in (pictures, jpegs):
        assert (
            guards.blind_test(guards.picture_features(alike), released, block, draws=199).p > 0.05
        )


def test_the_blind_baseline_sees_a_side_that_is_more_varied():
    rng = np.random.default_rng(0)
    released, block = labelled(rng, 60)
    features = rng.normal(size=(240, 3)) * np.where(released, 2, 1)[:, None]
    assert guards.blind_test(features, released, block, draws=199).p < 0.01


def test_features_are_numbers_for_plain_and_odd_pictures():
    for height, width in ((16, 24), (33, 17)):
        black_and_white = np.zeros((2, height, width, 3), np.uint8)
        black_and_white[1] = 255
        assert np.isfinite(guards.picture_features(black_and_white)).all()
    with pytest.raises(ValueError, match="at least 16"):
        guards.picture_features(np.zeros((2, 15, 24, 3), np.uint8))


@pytest.mark.parametrize(
    "features, released, prompts, sentence",
    [
        (np.zeros((8, 2)), [True, False] * 4, list("aabbccdd"), "4 prompts"),
        (np.zeros((9, 2)), [True, False] * 5, list("aabbccddee"), "give one of each"),
        (np.zeros((10, 2)), [True] * 10, list("aabbccddee"), "5 prompts have only"),
        (np.full((10, 2), np.nan), [True, False] * 5, list("aabbccddee"), "not a finite"),
    ],
)
def test_a_blind_test_that_cannot_be_made_is_refused(features, released, prompts, sentence):
    with pytest.raises(ValueError, match=sentence):
        guards.blind_test(features, released, prompts)


# The placebo


@pytest.mark.parametrize("given", [1, 2])
def test_the_placebo_is_even_even_where_the_suspect_knows(given):
    rng = np.random.default_rng(0)
    released, block = labelled(rng, 30, size=6, given=given)
    scores = rng.normal(size=180) + 5 * released
    p = guards.placebo_p(scores, released, block, draws=150)
    assert stats.kstest(p, "uniform").pvalue > 0.01 and len(p) == 150
    assert log_test(scores, released, block).p < 0.001


def test_the_placebo_labels_as_many_as_were_released_and_spares_one(monkeypatch):
    seen = []

    def spy(scores, labels, block, **_):
        seen.append((scores.tolist(), np.bincount(block, labels).tolist()))
        return SimpleNamespace(p=0.5)

    monkeypatch.setattr(guards, "log_test", spy)
    released = [True, False, True, True, False, False, True, True, False, False, False]
    prompts = list("aabbbbccccc")
    guards.placebo_p(np.arange(11.0), released, prompts, draws=2)
    assert seen == [([4.0, 5, 8, 9, 10], [1, 2])] * 2  # a has nothing to spare, b one
    with pytest.raises(ValueError, match="no prompt has two withheld"):
        guards.placebo_p([1.0, 2.0], [True, False], ["a", "a"])


def test_the_shift_that_can_be_found_is_found_that_often():
    rng = np.random.default_rng(0)
    released, block = labelled(rng, 50, size=5, given=2)
    shift = guards.detectable_shift(released, block, alpha=0.05, power=0.8)
    found = [
        log_test(rng.normal(size=250) + shift * released, released, block, draws=199, seed=k).p
        for k in range(300)
    ]
    assert 0.73 < np.mean(np.array(found) <= 0.05) < 0.87
    one = guards.detectable_shift([True, False] * 100, np.repeat(np.arange(100), 2))
    assert one == pytest.approx((1.644854 + 0.841621) / np.sqrt(50), rel=1e-5)


# Rosenbaum's bound


def enumerated(scores, given, favoured, gamma):
    "Mean and variance of the sum of released scores, over all choices, each as likely as its odds say."
    sums, weights = [], []
    for chosen in itertools.combinations(range(len(scores)), given):
        sums.append(scores[list(chosen)].sum())
        weights.append(np.prod([gamma ** favoured[k] for k in chosen]))
    weights = np.array(weights) / np.sum(weights)
    mean = weights @ sums
    return mean, weights @ (np.array(sums) - mean) ** 2


@pytest.mark.parametrize("size, given", [(2, 1), (4, 1), (5, 2), (6, 3), (5, 4)])
@pytest.mark.parametrize("gamma", [1, 1.7, 6])
def test_moments_under_bias_are_those_of_all_choices(size, given, gamma):
    scores = np.sort(np.random.default_rng(size).normal(size=size))[::-1]
    for top in range(1, size):
        mean, var = guards.biased_moments(scores[None], given, top, gamma)
        reference = enumerated(scores, given, np.arange(size) < top, gamma)
        assert (mean[0], var[0]) == pytest.approx(reference)


@pytest.mark.parametrize("size, given", [(4, 1), (5, 2), (6, 3)])
def test_no_other_bias_is_worse(size, given):
    "Over all ways to favour pictures, also by halves, none has a larger mean."
    rng = np.random.default_rng(size)
    scores = rng.normal(size=size)
    worst, _ = guards._worst_moments(scores[None], given, 2.5)
    ways = [np.array(w) for w in itertools.product([0, 1], repeat=size)]
    ways += list(rng.uniform(size=(200, size)))
    assert max(enumerated(scores, given, w, 2.5)[0] for w in ways) == pytest.approx(worst[0])


def test_of_two_worst_cases_the_one_that_varies_more_counts():
    "By hand: favouring one or two of the scores 1, 2/3, 0 at odds of 2 gives the same mean."
    mean, var = guards._worst_moments(np.array([[0, 1, 2 / 3]]), 1, 2.0)
    assert (mean[0], var[0]) == pytest.approx((2 / 3, 1 / 6))


def test_without_bias_it_is_the_log_test():
    for run in range(6):
        rng = np.random.default_rng(run)
        sizes = rng.integers(2, 7, 80)
        block = np.repeat(np.arange(80), sizes)
        released = np.zeros(len(block), bool)
        for k, size in enumerate(sizes):
            place = np.flatnonzero(block == k)
            released[rng.choice(place, rng.integers(1, size), replace=False)] = True
        order = rng.permutation(len(block))
        log = ((rng.exponential(size=len(block)) + 0.1 * released)[order], released[order])
        exact = log_test(*log, block[order], draws=9999, seed=run).p
        assert guards.biased_p(*log, block[order]) == pytest.approx(exact, abs=0.02)


@pytest.mark.parametrize("gamma", [1, 1.3, 2])
def test_pairs_of_yes_and_no_have_a_binomial_bound(gamma):
    "McNemar's pairs: of those that differ, at most Γ/(1 + Γ) favour the released one."
    wins, losses, ties = 75, 45, 30
    pairs = [(1.0, 0.0)] * wins + [(0.0, 1.0)] * losses + [(1.0, 1.0)] * ties
    released, block = np.tile([True, False], 150), np.repeat(np.arange(150), 2)
    found = guards.biased_p(np.ravel(pairs), released, block, gamma)
    share, n = gamma / (1 + gamma), wins + losses
    normal = stats.norm.sf((wins - n * share) / np.sqrt(n * share * (1 - share)))
    assert found == pytest.approx(normal)
    exact = sum(comb(n, k) * share**k * (1 - share) ** (n - k) for k in range(wins, n + 1))
    without = stats.binom.sf(wins, n, share)  # the normal one lies between the two
    assert without < found < exact


def tilted(rng, gamma, size=5, given=2, prompts=80):
    "A log of an innocent whose release favours the two that it knows best, at these odds."
    scores = -np.sort(-rng.exponential(size=(prompts, size)))
    choices = np.array(list(itertools.combinations(range(size), given)))
    odds = gamma ** (choices < 2).sum(1)
    chosen = choices[rng.choice(len(choices), prompts, p=odds / odds.sum())]
    released = np.zeros(scores.shape, bool)
    np.put_along_axis(released, chosen, True, axis=1)
    return scores.ravel(), released.ravel(), np.repeat(np.arange(prompts), size)


def test_a_biased_release_does_not_exceed_the_level_at_its_bias():
    logs = [tilted(np.random.default_rng(k), 1.5) for k in range(150)]
    accused = {g: np.mean([guards.biased_p(*x, g) <= 0.05 for x in logs]) for g in (1, 1.5, 2)}
    assert accused[1] > 0.4 and accused[1.5] <= 0.09 and accused[2] <= 0.02


def test_sensitivity_says_where_the_level_is_reached():
    rng = np.random.default_rng(0)
    released, block = labelled(rng, 100)
    log = (rng.normal(size=400) + 0.5 * released, released, block)
    found = guards.sensitivity(*log, gammas=[1, 1.5, 2], alpha=0.01)
    assert guards.biased_p(*log, found.gamma) == pytest.approx(0.01, rel=1e-2)
    assert found.table.gamma.tolist() == [1, 1.5, 2] and found.table.p.is_monotonic_increasing
    assert found.table.p[1] == guards.biased_p(*log, 1.5)
    nothing = guards.sensitivity(rng.normal(size=400), released, block)
    assert nothing.gamma == 1 and "nothing to explain" in nothing._repr_markdown_()
    flat = guards.sensitivity(np.ones(400), released, block)
    assert flat.table.p.eq(1).all() and flat.gamma == 1


def test_scores_may_be_shifted_and_stretched():
    rng = np.random.default_rng(0)
    released, block = labelled(rng, 50)
    scores = rng.normal(size=200) + 0.4 * released
    p = guards.biased_p(scores, released, block, 1.3)
    for other in (1e3 + 5 * scores + 100 * block, 1e-12 * scores, 1e12 * scores):
        assert guards.biased_p(other, released, block, 1.3) == pytest.approx(p)


@pytest.mark.parametrize(
    "scores, gamma, sentence",
    [
        (np.zeros(4), 0.9, "gamma=0.9"),
        (np.zeros(4), np.nan, "gamma=nan"),
        (np.zeros((2, 4)), 1, "fixed beforehand"),
        (np.zeros(3), 1, "give one of each"),
        (np.array([0, 1, np.inf, 0]), 1, "not a finite"),
    ],
)
def test_a_bound_that_cannot_be_given_is_refused(scores, gamma, sentence):
    with pytest.raises(ValueError, match=sentence):
        guards.biased_p(scores, [True, False] * 2, list("aabb"), gamma)


def test_shuffles_used_by_the_guards_keep_blocks():
    "The placebo's labels stay within withheld pictures of a prompt, whatever their order in the log."
    block = np.array([1, 0, 1, 0, 1, 0])
    first = guards._first_of_each(block, np.array([2, 1, 2, 1, 2, 1]))
    assert first.tolist() == [True, True, True, False, False, False]
    drawn = shuffled_labels(first, block, 20, np.random.default_rng(0))
    assert (drawn[:, block == 1].sum(1) == 2).all() and (drawn[:, block == 0].sum(1) == 1).all()


def test_logs_stand_apart_from_where_they_lie(log, tmp_path):
    "A log that is copied elsewhere reads, and is verified, the same."
    committed, read = commit(log), read_log(log)[:]
    moved = Path(log).rename(tmp_path / "elsewhere")
    assert read_log(moved)[:] == read and verify(moved, committed, KEY).key
