"An audit's file: every mistake is told with its key, its line and what to do, before anything is written."

import json
import os
import random
import re
import string
import time
from itertools import combinations
from pathlib import Path

import jsonschema
import numpy as np
import pandas as pd
import pytest
import yaml
from helpers import folder_of, png, sentence
from pydantic import ValidationError

from trainprove_nb.audit.asking import accesses, suspect_function
from trainprove_nb.audit.checks import check_file
from trainprove_nb.audit.reading import AuditFileError, new_audit, read_audit
from trainprove_nb.audit.sections import AuditFile, Suspect, audit_schema, knob_table
from trainprove_nb.evidence.commitment import commit
from trainprove_nb.evidence.release_log import COLUMNS, JOURNAL, Recorder, new_key

SECRET = "sk-live-0123456789abcdef"
GOOD = "suspect: {model: mini-v1}\n"


def written(folder):
    "All that lies in a folder, with what is in it."
    files = (p for p in sorted(Path(folder).rglob("*")) if "__pycache__" not in p.parts)
    return {str(p): p.is_file() and p.read_bytes() for p in files}


def audit_of(folder, text, **overrides):
    "An audit of a file with this text."
    file = folder / "audit.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_audit(file, overrides)


def mistakes(folder, text, overrides=None):
    "What is said about a file; nothing but the file may be there afterwards."
    file = folder / "audit.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    before = written(folder)
    with pytest.raises(AuditFileError) as e:
        read_audit(file, overrides)
    assert written(folder) == before
    context = e.value.__context__  # pydantic's words are not shown, since they hold values
    assert context is None or e.value.__suppress_context__
    for line in e.value.mistakes:
        sentence(line)
        assert SECRET not in line
    assert str(e.value).splitlines()[0] == e.value.mistakes[0]
    return e.value.mistakes


def one_mistake(folder, text, place, advice, overrides=None):
    "The only thing that is said about a file begins with the place, and has the advice."
    (said,) = mistakes(folder, text, overrides)
    assert said.startswith(f"{place}: ") or said.startswith(f"{place} = "), said
    sentence(said, advice)


# What the keys take

VALUES = [  # key, value as YAML, advice
    ("owned.kind", "classifier", "give one of generator"),
    ("owned.model", "5", r"= 5: give a text \(in quotes"),
    ("owned.model", "[a, b]", "= a list of 2: give a text"),
    ("owned.model", "{a: b}", "= a mapping: give a text"),
    ("owned.model", "true", "= true: give a text"),
    ("owned.model", '""', "= '': give a text"),
    ("owned.model", '"  "', "give a text"),
    ("owned.model", '"a\\nb"', r"= 'a\\nb': give a text"),
    ("owned.model", '"\\ud800"', "give a text"),
    ("owned.model", "x" * 1001, "give a text"),
    ("owned.settings", "fast", "= 'fast': give a mapping with steps, guidance, size"),
    ("owned.settings.steps", "0", "= 0: give a whole number of at least 1 and at most 1,000"),
    ("owned.settings.steps", "2.5", "= 2.5: give a whole number"),
    ("owned.settings.steps", "true", "= true: give a whole number"),
    ("owned.settings.guidance", ".nan", "= nan: give a number of at least 0 and at most 100"),
    ("owned.settings.guidance", "-1", "= -1: give a number"),
    ("owned.settings.size", "9000", "= 9000: give a whole number"),
    ("owned.trained_on", "7", "= 7: give a text"),
    ("released.log", "null", "= null: give a text"),
    ("released.account", "12345", r"= 12345: give a text \(in quotes"),
    ("released.account", "[alice]", "= a list of 1: give a text"),
    ("released.withheld", "0", "= 0: give a whole number of at least 1 and at most 16"),
    ("released.withheld", "17", "= 17: give a whole number of at least 1 and at most 16"),
    ("released.withheld", "'2'", r"= '2': give a whole number .* leave the quotes out"),
    ("released.encoder", "PNG", "= 'PNG': give a mapping with format"),
    ("released.encoder", "{}", r"it has no format: give one of PNG, JPEG, WEBP"),
    ("released.encoder", "{quality: 90}", "it has no format: give one of"),
    ("released.encoder", "{format: JPEG}", "JPEG loses something: give the quality"),
    ("released.encoder", "{format: WEBP}", "WEBP loses something: give the quality"),
    ("released.encoder", "{format: PNG, quality: 90}", "PNG has no quality: leave it out"),
    ("released.encoder", "{format: JPEG, lossless: true}", "JPEG has no lossless: leave it out"),
    ("released.encoder.format", "GIF", "= 'GIF': give one of PNG, JPEG, WEBP"),
    ("suspect.kind", "vae", "= 'vae': give one of generator, classifier"),
    ("suspect.model", "3", "= 3: give a text"),
    ("suspect.model", f"https://x.example/draw?key={SECRET}", "key written out.* write a recipe"),
    ("suspect.model", f"https://me:{SECRET}@x.example/draw", "key written out.* write a recipe"),
    ("suspect.access", "all", "= 'all': give one of weights, prompts, pictures, labels, scores"),
    ("suspect.access", "labels", "= 'labels': a generator has none of that: choose from weights"),
    ("suspect.settings", "[4]", "= a list of 1: give a mapping with steps"),
    ("suspect.settings.steps", "'4'", r"= '4': give a whole number .* leave the quotes out"),
    ("suspect.settings.strength", ".inf", "a number in it is not finite: give another"),
    ("suspect.settings.headers", SECRET, "give a mapping"),
    ("suspect.adapter", "my_suspect", "give a text of the form module:function"),
    ("suspect.adapter", "mine.py:f()", "give a text of the form module:function"),
    ("test.level", "2", "= 2: give a number between 0 and 0.5"),
    ("test.level", "0", "= 0: give a number between 0 and 0.5"),
    ("test.level", "0.5", "= 0.5: give a number between 0 and 0.5"),
    ("test.level", "5%", "= '5%': give a number between 0 and 0.5"),
    ("test.level", "true", "= true: give a number between 0 and 0.5"),
    ("test.level", ".nan", "= nan: give a number between 0 and 0.5"),
    ("test.level", "-.inf", "= -inf: give a number between 0 and 0.5"),
    ("test.level", "1e999", "= inf: give a number between 0 and 0.5"),
    ("test.level", "12:30", "= '12:30': give a number"),
    ("test.level", "[0.05]", "= a list of 1: give a number"),
    ("test.answers", "0", "= 0: give a whole number of at least 1 and at most 100"),
    ("test.answers", "010", "= '010': give a whole number"),
    ("test.questions", "-5", "= -5: give a whole number of at least 1"),
    ("test.draws", "9", "= 9: give a whole number of at least 99"),
    ("test.draws", "1e5", "= 100000.0: give a whole number"),
    ("test.score", "my_score", "give a text of the form module:function"),
    ("test.references", "mini-v1", "= 'mini-v1': give a list .* of texts"),
    ("test.references", "[mini-v1, mini-v1]", "a value comes twice: give each once"),
    ("control.rhos", "0.3", "= 0.3: give a list .* of numbers above 0 and at most 1"),
    ("control.rhos", "[0.3, 0.3]", "a value comes twice: give each once"),
    ("control.rhos", str([k / 100 for k in range(1, 12)]), "give a list"),
    ("control.steps", "0", "= 0: give a whole number of at least 1"),
    ("control.others", "false", "= false: give a text"),
    ("lab.folder", "3.5", "= 3.5: give a text"),
    ("lab.scale", "huge", "= 'huge': give one of smoke, mini, gpu, paper"),
    ("lab.knobs", "[steps]", "= a list of 1: give a mapping"),
    ("lab.knobs", "{lr: .nan}", "a number in it is not finite: give another"),
    ("lab.shadows", "1000000000", "= 1000000000: give a whole number of at least 3 and at most"),
    ("lab.shadows", "2", "= 2: give a whole number of at least 3"),
    ("lab.shadows", "9" * 5000, "this is no number: give a whole number"),
    ("lab.jobs", "-1", "= -1: give a whole number of at least 1"),
    ("out", "1", "= 1: give a text"),
    ("out", "", "nothing is given: give a text, or leave the line out"),
    ("test.level", "", "nothing is given: give a number between 0 and 0.5, or leave the line out"),
    ("test", "3", "= 3: give a mapping with level, answers, questions, price, draws"),
    ("control", "[1, 0.3]", "= a list of 2: give a mapping with rhos"),
    ("lab", "", "nothing is given: give a mapping with folder"),
]


def nested(key, value):
    "A file in which a key has a value, with what a good file needs; and the key's line."
    *sections, last = key.split(".")
    needed = {"suspect": "  model: mini-v1\n", "released": "  log: service-log\n"}
    if key in ("suspect.model", "suspect.adapter", "released.log"):
        needed.pop(sections[0])
    lines = [f"{'  ' * k}{name}:\n" for k, name in enumerate(sections)]
    lines.append(f"{'  ' * len(sections)}{last}: {value}\n")
    if sections and sections[0] in needed:
        lines.insert(1, needed[sections[0]])
    begin = "# an audit\n\n" + ("" if key.startswith("suspect") else GOOD)
    return begin + "".join(lines), begin.count("\n") + len(lines)


@pytest.mark.parametrize("key, value, advice", VALUES)
def test_a_bad_value_is_told_with_key_line_and_advice(tmp_path, key, value, advice):
    text, line = nested(key, value)
    place = key
    if SECRET in value or "strength" in key:  # of the mapping, or without its value
        place = key.removesuffix(".strength")
        line -= key.endswith("strength")
    one_mistake(tmp_path, text, f"audit.yaml line {line}: {place}", advice)


@pytest.mark.parametrize("key, value, advice", [v for v in VALUES if len(v[1]) < 100])
def test_a_bad_value_on_the_command_line_is_told_without_a_line(tmp_path, key, value, advice):
    text = GOOD.replace("}", ", settings: {}}") + "released: {log: service-log}\n"
    if key == "suspect.adapter":
        text = "released: {log: service-log}\n"
    advice = advice.replace(", or leave the line out", "")
    place = key.removesuffix(".strength")
    where = "-s " if place == key else "audit.yaml line 1: "  # where the mapping stands
    one_mistake(tmp_path, text, f"{where}{place}", advice, {key: value})


@pytest.mark.parametrize("value", ["2", "a", "true", ".nan", "[1]", "null", "0"])
def test_a_bad_item_of_a_list_is_told_with_its_place(tmp_path, value):
    text = GOOD + f"control:\n  rhos:\n    - 1\n    - {value}\n"
    one_mistake(
        tmp_path, text, "audit.yaml line 5: control.rhos, item 2", "give a number above 0 and at"
    )


@pytest.mark.parametrize(
    "text, place, advice",
    [
        ("suspect: {modle: mini-v1, adapter: a:b}", "suspect.modle", "mean suspect.model\\?"),
        (GOOD + "\nlevle: 1", "levle", "do you mean test.level\\?"),
        (GOOD + "\nsuspekt: {}", "suspekt", "do you mean suspect\\?"),
        (GOOD + "\naccount: alice", "account", "do you mean released.account\\?"),
        (GOOD + "\ntest:\n  aswers: 5", "test.aswers", "do you mean test.answers\\?"),
        (GOOD + "\nzzz: 5", "zzz", "choose from owned, released, suspect, test, control, lab, out"),
        (GOOD + "\n5: 5", "5", "there is no such key"),
        (GOOD + "\ntest:\n  5: 5", "test.5", "there is no such key"),
        (GOOD + "\ntrue: 5", "true", "there is no such key"),
        (GOOD + "\n<<: {out: x}", "'<<'", "there is no such key"),
        (GOOD + "\n'a b\\n': 5", r"'a b\\n'", "there is no such key"),
        (GOOD + "\nowned: {settings: {stepz: 5}}", "owned.settings.stepz", "owned.settings.steps"),
        (
            GOOD + "\nreleased: {log: a, encoder: {format: PNG, q: 1}}",
            "released.encoder.q",
            "choose",
        ),
        (GOOD + "\nlab:\n  {'': 1}", "lab.''", "there is no such key"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest(tmp_path, text, place, advice):
    one_mistake(tmp_path, text, f"audit.yaml line {text.count(chr(10)) + 1}: {place}", advice)


@pytest.mark.parametrize(
    "text, place, advice",
    [
        ("out: x", "audit.yaml: suspect", "it is missing: add it, a mapping with kind, model"),
        (GOOD + "released: {account: a}", "audit.yaml line 2: released.log", "as in log: service"),
        ("\nsuspect: {base: a}", "audit.yaml line 2: suspect", "give model .* or adapter"),
        (
            "suspect: {model: a, adapter: b:c}",
            "audit.yaml line 1: suspect",
            "leave one of them out",
        ),
        (GOOD + "out: a\nout: b", "audit.yaml line 3: out", r"twice \(first in line 2\): keep one"),
        (GOOD + "? [a]\n: b", "audit.yaml line 2: '\\?'", "a key is a list or a mapping"),
    ],
)
def test_what_is_missing_or_twice_is_told(tmp_path, text, place, advice):
    (said,) = mistakes(tmp_path, text)
    sentence(said, f"^{place}: ", advice)


def test_all_mistakes_are_told_in_the_order_of_their_lines(tmp_path):
    text = """
test:
  level: 2
  draws: 1
suspect:
  modle: x
  model: mini-v1
out: 5
lab: {jobs: 0, shadows: 0}
test: {}
"""
    said = mistakes(tmp_path, text, {"control.rhos": "x"})
    assert [s.split(": ")[0] for s in said] == [
        "-s control.rhos = 'x'",
        *(f"audit.yaml line {k}" for k in (3, 4, 6, 8, 9, 9, 10)),
    ]


def test_of_very_many_mistakes_some_are_shown(tmp_path):
    (tmp_path / "audit.yaml").write_text(GOOD + "".join(f"key{k}: 1\n" for k in range(500)))
    with pytest.raises(AuditFileError) as e:
        read_audit(tmp_path / "audit.yaml")
    assert len(e.value.mistakes) == 500
    assert all("there is no such key: " in said for said in e.value.mistakes)
    assert str(e.value).splitlines()[-1] == "and 480 more"


# What is no file of an audit

BOMB = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "text, place, advice",
    [
        ("", "line 1: ", "it holds nothing: give the sections owned, released"),
        ("# only a comment\n", "line 1: ", "it holds nothing"),
        ("- a\n- b\n", "line 1: ", "it holds a list: give the sections"),
        ("models/theirs", "line 1: ", "it holds a text: give the sections"),
        ("a: b\n---\nc: d\n", "line 2: ", "keep one of them"),
        ("a: [1, 2\nb: 3\n", "line 2: ", "brackets"),
        ("a: 'b\n\n", "line 3: ", "quotes"),
        ("a: b: c\n", "line 1: ", "mapping values are not allowed here.*colons"),
        (" a: 1\nb: 2\n", "line 2: ", "indentation"),
        ("test:\n\tlevel: 1\n", "line 2: ", "indent with spaces, not with tabs"),
        ("a: 1\nb: \x07\n", "line 2: ", "cannot be printed: remove it"),
        ("ä: ü\n".encode("latin-1"), "", "is not UTF-8 .*: save it again as UTF-8"),
        (GOOD.encode("utf-16"), "", "is not UTF-8 .*: save it again as UTF-8"),
        (GOOD.encode("utf-16-le"), "", "is not UTF-8 .*: save it again as UTF-8"),
        (bytes(range(256)), "", "is not UTF-8"),
        (BOMB, "line 2: ", "an alias .*write the value out"),
        ("a: &a [*a]\n", "line 1: ", "an alias .*write the value out"),
        ("a: 1\nb: *a\n", "line 2: ", "an alias .*write the value out"),
        ("a: !!python/object/apply:os.system [ls]\n", "line 1: ", "a tag .*leave it out"),
        ("a: !x b\n", "line 1: ", "a tag .*leave it out"),
        ("%YAML 9.0\n---\na: b\n", "line 1: ", "this is not read"),
        ("[" * 200_000, "line 1: ", "within each other.*close the brackets"),
        ("{a: " * 50_000, "line 1: ", "within each other.*close the brackets"),
        ("- " * 100_000, "line 1: ", "within each other"),
        ("? " * 100_000, "line 1: ", "within each other"),
        ("a: x\n" * 60_000, "", "is larger than 256 KB"),
    ],
)
def test_what_is_no_audit_is_one_sentence_and_quick(tmp_path, text, place, advice):
    start = time.process_time()
    (said,) = mistakes(tmp_path, text)
    assert time.process_time() - start < 5
    sentence(said, f"audit.yaml {place}", advice)


def test_many_unknown_keys_are_no_work(tmp_path):
    start = time.process_time()
    text = GOOD + "".join(f"some_key_{k}: 1\n" for k in range(10_000))
    assert len(mistakes(tmp_path, text)) == 10_000
    assert time.process_time() - start < 20


def test_a_large_file_is_not_read_to_its_end(tmp_path):
    with open(tmp_path / "audit.yaml", "wb") as f:
        f.truncate(50 * 2**20)
    start = time.process_time()
    with pytest.raises(AuditFileError, match="audit.yaml is larger than 256 KB"):
        read_audit(tmp_path / "audit.yaml")
    assert time.process_time() - start < 1


def test_no_file_a_folder_and_what_is_neither(tmp_path):
    for path, advice in (
        (tmp_path / "other.yaml", "there is no file .*: make one with `trainprove audit new`"),
        (tmp_path, "is a folder: give the file, .*audit.yaml"),
        ("/dev/zero", "there is no file"),
        ("a\0b", "there is no file"),
        ("x" * 5000, "there is no file"),
    ):
        with pytest.raises(AuditFileError, match=advice):
            read_audit(path)


def test_a_file_with_a_mark_at_its_beginning_is_read(tmp_path):
    assert audit_of(tmp_path, b"\xef\xbb\xbf" + GOOD.encode()).suspect.model == "mini-v1"
    assert audit_of(tmp_path, GOOD.replace("\n", "\r\n") + "out: x\r\n").out == str(tmp_path / "x")


# Values as they are meant


@pytest.mark.parametrize(
    "text", ["no", "on", "y", "Off", "2024-01-01", "010", "12:30", "1_000", "0x1f"]
)
def test_texts_that_older_yaml_takes_for_something_else_stay_texts(tmp_path, text):
    audit = audit_of(tmp_path, GOOD + f"released: {{log: a, account: {text}}}")
    assert audit.released.account == text


@pytest.mark.parametrize(
    "text, level", [("1e-3", 0.001), ("1.0E-2", 0.01), (".05", 0.05), ("+0.1", 0.1)]
)
def test_numbers_are_read_as_one_writes_them(tmp_path, text, level):
    assert audit_of(tmp_path, GOOD + f"test: {{level: {text}}}").test.level == level


def test_a_mapping_may_be_from_numbers(tmp_path):
    text = (
        'suspect: {kind: classifier, model: a.onnx, settings: {mapping: {0: cat, "1": dog, x: y}}}'
    )
    assert audit_of(tmp_path, text).suspect.settings["mapping"] == {0: "cat", "1": "dog", "x": "y"}


def test_paths_are_seen_from_the_folder_of_the_file(tmp_path, monkeypatch):
    (tmp_path / "case/models").mkdir(parents=True)
    (tmp_path / "case/data").mkdir()
    (tmp_path / "elsewhere/other/here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("HOME", str(tmp_path))
    case = tmp_path / "case"
    text = """
owned: {model: models/mine, trained_on: ../data}
suspect: {model: owner/name, base: other/here}
released: {log: ~/log}
control: {base: mini-v1, others: /data}
lab: {knobs: {corpora: [data, emoji, absent], trained: {a: [models, data]}}}
"""
    audit = audit_of(case, text)
    assert audit.owned.model == str(case / "models/mine")  # not there, but its folder is
    assert audit.owned.trained_on == str(tmp_path / "data")
    assert audit.suspect.model == "owner/name"
    assert audit.suspect.base == str(case / "other/here")  # never what lies elsewhere
    assert audit.released.log == str(tmp_path / "log")
    assert (audit.control.base, audit.control.others) == ("mini-v1", "/data")
    assert audit.lab.knobs["corpora"] == [str(case / "data"), "emoji", "absent"]
    assert audit.lab.knobs["trained"]["a"] == [str(case / "models"), str(case / "data")]
    assert (audit.out, audit.lab.folder) == (str(case / "audit"), str(case / "lab"))
    assert audit.folder == case


@pytest.mark.parametrize("name", ["https://x.example/a", "hub:owner/name", "replicate", "mini-lcm"])
def test_names_and_addresses_stay_as_they_are(tmp_path, name):
    assert audit_of(tmp_path, f"suspect: {{model: '{name}'}}").suspect.model == name


def test_an_audit_cannot_be_changed_or_made_of_nonsense():
    audit = AuditFile(suspect={"model": "mini-v1"})
    with pytest.raises(ValidationError):
        audit.out = "elsewhere"
    with pytest.raises(ValidationError):
        audit.test.level = 0.5
    with pytest.raises(ValidationError) as e:
        Suspect(model="x", settings={"headers": {"Authorization": SECRET}})
    assert SECRET not in str(e.value)


# -s key=value


def test_what_is_given_takes_the_place_of_the_file(tmp_path):
    text = GOOD + "test: {level: 2, draws: 999}\n"
    overrides = {"test.level": "0.01", "suspect.settings": "{steps: 4}"}
    overrides |= {"suspect.settings.guidance": "1", "released.log": "logs", "lab.jobs": 2}
    audit = audit_of(tmp_path, text, **overrides)
    assert (audit.test.level, audit.test.draws, audit.lab.jobs) == (0.01, 999, 2)
    assert audit.suspect.settings == {"steps": 4, "guidance": 1}
    assert audit.released.log == str(tmp_path / "logs")
    assert audit.refusal("test.level", "no") == "-s test.level = 0.01: no"
    assert audit.refusal("test.draws", "no") == "audit.yaml line 2: test.draws = 999: no"
    assert audit.refusal("out", "no") == "audit.yaml: out: no"


@pytest.mark.parametrize(
    "key, value, advice",
    [
        ("test.level", "[1", "-s test.level: this is not read .*brackets"),
        ("test.level", "*a", "-s test.level: this is not read .*an alias"),
        ("test.level", "", "-s test.level: nothing is given: give a number"),
        ("lab.knobs", "{a: 1, a: 2}", "-s lab.knobs.a: this key is given twice .*: keep one"),
        ("test.levle", "1", "-s test.levle: there is no such key: do you mean test.level"),
        ("test.level.x", "1", "-s test.level = a mapping: give a number"),
        ("", "1", "-s ''?: this is no key: give one with dots, as in test.level=0.01"),
        ("test..level", "1", "-s .*this is no key: give one with dots"),
        ("test", "3", "-s test = 3: give a mapping with level"),
        ("suspect.settings.headers.Authorization", SECRET, "-s .*headers: a key is written out"),
        ("suspect.settings.headers", f"'{SECRET}'", "-s suspect.settings.headers: give a mapping"),
    ],
)
def test_mistakes_on_the_command_line_say_so(tmp_path, key, value, advice):
    for said in mistakes(tmp_path, GOOD, {key: value}):
        assert said.startswith("-s ")
        sentence(said, advice)


# Secrets


@pytest.mark.parametrize(
    "headers",
    [
        f"{{Authorization: Bearer {SECRET}}}",
        f"{{Authorization: {SECRET}}}",
        f'{{Authorization: "Bearer $NAME{SECRET}"}}',
        "{Authorization: Basic dXNlcjpwYXNzd29yZA==}",
        "{authorization: hunter2}",
        "{X-Api-Key: hunter2}",
        f"{{Cookie: session={SECRET}}}",
        f"{{Accept: {SECRET}}}",
        f"{{X-Anything: Bearer {SECRET}}}",
        f"{{X-Anything: [{SECRET}]}}",
        f"{{X-Anything: {{a: {SECRET}}}}}",
        f"[{SECRET}]",
        f"'Authorization: {SECRET}'",
    ],
)
def test_a_key_that_is_written_out_is_refused_and_never_told(tmp_path, headers):
    text = f"suspect:\n  model: https://x.example/draw\n  settings:\n    headers: {headers}\n"
    (said,) = mistakes(tmp_path, text)
    assert said.startswith("audit.yaml line 4: suspect.settings.headers")
    assert not re.search("hunter2|dXNl|sk-live", said)
    sentence(said, "name it, as in|give a mapping|give a text")


@pytest.mark.parametrize(
    "text",
    [
        f"suspect: {{model: https://x.example, headers: {{Authorization: Bearer {SECRET}}}}}",
        f"suspect: {{model: https://x.example, settings: 'headers: Bearer {SECRET}'}}",
        f"suspect: [{SECRET}]",
        f"suspect: {SECRET}",
        f"{GOOD}out: [{SECRET}]",
        f"{GOOD}lab: {{scale: {SECRET}}}",
        f"suspect: {{model: https://x.example, settings: {{headers: {{a: *{SECRET}}}}}}}",
        f"suspect: {{model: https://x.example, settings: {{headers: {{a: !{SECRET} x}}}}}}",
        f"suspect:\n  settings:\n    headers:\n      a: b: {SECRET}",
        f"suspect: {{model: https://x.example/draw?token={SECRET}, access: 3}}",
    ],
)
def test_a_key_in_the_wrong_place_is_not_told_either(tmp_path, text):
    assert mistakes(tmp_path, text)  # which looks for the secret


@pytest.mark.parametrize(
    "headers",
    [
        '{Authorization: "Bearer $NAME"}',
        "{Authorization: $NAME}",
        '{X-Api-Key: "${NAME}"}',
        '{Cookie: "session=$NAME; other=$OTHER"}',
        "{Accept: image/png, User-Agent: Mozilla/5.0}",
    ],
)
def test_a_key_of_the_environment_is_taken(tmp_path, headers):
    text = f"suspect: {{model: https://x.example/draw, settings: {{headers: {headers}}}}}"
    assert audit_of(tmp_path, text).suspect.settings["headers"]


# A new file

ANSWERS = {
    "owned.model": "models/mine",
    "released.encoder": {"format": "JPEG", "quality": 90},
    "released.log": "service log",
    "released.account": "no",
    "suspect.settings": {"steps": 4, "mapping": {0: "a b"}},
    "control.rhos": [1, 0.3],
    "out": "ängst: #1",
}


def combinations_of(answers):
    "All subsets of some answers."
    for n in range(len(answers) + 1):
        for names in combinations(answers, n):
            yield {name: answers[name] for name in names}


def test_what_is_answered_is_read_again_for_every_combination(tmp_path):
    there = AuditFile(suspect={"model": "mini-v1"}).model_dump()
    for k, answers in enumerate(combinations_of(ANSWERS)):
        answers = {"suspect.model": "https://x.example/draw", **answers}
        if "released.log" not in answers:
            answers = {n: v for n, v in answers.items() if not n.startswith("released")}
        file = new_audit(tmp_path / str(k), **answers)
        audit = read_audit(file).model_dump()
        for section, keys in audit.items():
            for name, value in keys.items() if isinstance(keys, dict) else ():
                dotted = f"{section}.{name}"
                wanted = answers.get(dotted, there[section] and there[section].get(name))
                if section == "released" and dotted not in answers:
                    wanted = 2 if name == "withheld" else None
                if isinstance(value, str) and name in ("log", "model", "folder"):
                    assert value.endswith(wanted), dotted
                elif isinstance(value, tuple):
                    assert list(value) == list(wanted), dotted
                else:
                    assert value == wanted, dotted
        assert audit["out"] == str(file.parent / answers.get("out", "audit"))
        jsonschema.validate(yaml.safe_load(file.read_text()), audit_schema())


@pytest.mark.parametrize(
    "account",
    [
        "alice",
        "12",
        "1e-3",
        "true",
        "null",
        "~",
        "- a",
        "a: b",
        "#1",
        "'",
        '"',
        "\\n",
        "ü😀",
        "a,b",
        "[",
        "2024-01-01",
    ],
)
def test_any_account_comes_back_as_it_was(tmp_path, account):
    answers = {"suspect": {"model": "mini-v1"}, "released": {"log": "a", "account": account}}
    assert read_audit(new_audit(tmp_path, **answers)).released.account == account


def test_an_account_with_odd_characters_comes_back(tmp_path):
    account = "a\u2028b\u0085c\u00a0d"
    answers = {"suspect": {"model": "mini-v1"}, "released": {"log": "a", "account": account}}
    assert read_audit(new_audit(tmp_path, **answers)).released.account == account


def whole_example(folder):
    "The file in which nothing is left out, as text: all comments of a new one made to count."
    lines = new_audit(folder).read_text().splitlines()
    begin = next(k for k, line in enumerate(lines) if line.startswith("# owned:"))
    return (
        "\n".join(line[2:] for line in lines[begin:] if not re.search("adapter:|score:", line))
        + "\n"
    )


def test_a_new_file_has_every_key_once_with_what_it_means(tmp_path):
    text = (new_audit(tmp_path)).read_text()
    for key, row in knob_table().iterrows():
        section, _, name = key.partition(".")
        if "." not in name:
            assert text.count(f"# {row['what']}\n") == 1, key


def test_the_example_is_read_and_the_schema_takes_it(tmp_path):
    example = whole_example(tmp_path)
    audit = audit_of(tmp_path, example)
    assert [Path(model).name for model in audit.test.references] == ["mine-1", "mine-2"]
    usual = AuditFile(suspect={"model": "mini-v1"}).test
    assert audit.test.model_copy(update={"references": ()}) == usual
    assert audit.control.rhos == (1, 0.3)
    schema = json.loads((tmp_path / "audit.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(yaml.safe_load(example), schema)


@pytest.mark.parametrize("key, value, advice", VALUES)
def test_the_schema_refuses_what_the_reader_refuses(key, value, advice):
    ours = "written out|none of that|loses|has no|not finite|twice|no number"  # beyond a schema
    text, _ = nested(key, value)
    if re.search(ours, advice) or value in ("1e5", "1e999", ".nan", '"\\ud800"', "010", "12:30"):
        pytest.skip("no matter of the schema, or YAML of another version")
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(yaml.safe_load(text), audit_schema())


def test_a_new_file_is_made_once(tmp_path):
    file = new_audit(tmp_path / "a/b", suspect={"model": "mini-v1"})
    before = written(tmp_path)
    with pytest.raises(FileExistsError, match="is there already: edit it, or choose another"):
        new_audit(tmp_path / "a/b", suspect={"model": "mini-v2"})
    assert written(tmp_path) == before
    with pytest.raises(OSError, match="choose another folder"):
        new_audit(file)
    assert file.read_text().startswith("# yaml-language-server: $schema=audit.schema.json\n")


@pytest.mark.parametrize(
    "answers, said",
    [
        ({"test.level": 2}, "test.level = 2: give a number between 0 and 0.5"),
        ({"test.level": "0.01"}, "test.level = '0.01': give a number .*leave the quotes out"),
        ({"levle": 1}, "levle: there is no such key: do you mean test.level"),
        ({"suspect": {"modle": 1}}, "suspect.modle: there is no such key: do you mean suspect.mod"),
        ({"suspect": "mini-v1"}, "suspect = 'mini-v1': give a mapping with kind, model"),
        ({"suspect.settings": {"headers": {"Authorization": SECRET}}}, "a key is written out"),
        ({"test.level": np.float64("nan")}, "give a number between"),
        ({"lab.jobs": np.int64(2)}, "give a whole number"),
    ],
)
def test_a_wrong_answer_writes_nothing(tmp_path, answers, said):
    with pytest.raises(AuditFileError) as e:
        new_audit(tmp_path / "new", **answers)
    sentence(str(e.value), said)
    assert SECRET not in str(e.value)
    assert not list(tmp_path.iterdir())


def test_answers_that_are_not_known_are_left_open(tmp_path):
    file = new_audit(tmp_path, **{"suspect.model": None, "owned.model": "mini-v1"})
    with pytest.raises(AuditFileError, match="suspect: it is missing: add it"):
        read_audit(file)


# The table


def test_the_table_has_every_key():
    table = knob_table()
    assert (table.what.str.len() > 3).all() and (table.what.str.len() <= 130).all()
    assert (table.allowed.str.len() > 3).all()
    assert table.index.is_unique
    for section, model in AuditFile.model_fields.items():
        assert any(key == section or key.startswith(f"{section}.") for key in table.index), model
    assert table.loc["test.level"].tolist()[1:] == ["a number between 0 and 0.5", "0.05"]
    assert table.loc["released.log", "default"] == "must be given"


# What a check finds


@pytest.fixture
def case(tmp_path):
    "A folder with a log of both sides, an imagefolder, answers, an adapter, modules."
    table = pd.DataFrame({"prompt": [f"a {k}" for k in "abcdefghij" * 2], "account": "alice"})
    table["side"], table["file"] = ["released"] * 10 + ["withheld"] * 10, "a.png"
    logs = {
        "log": table,
        "one-sided": table[:10],
        "no-files": table.assign(file=None),
        "empty": table[:0],
    }
    for name, rows in logs.items():
        (tmp_path / name).mkdir()
        rows.reindex(columns=COLUMNS).to_parquet(tmp_path / name / "log.parquet")
    for name in ("junk", "data", "others", "nothing"):
        (tmp_path / name).mkdir()
    (tmp_path / "junk/log.parquet").write_bytes(b"junk")
    for name in ("data", "others"):
        rows = [{"file_name": f"{k}.png", "text": k} for k in "abcdef"]
        folder_of(tmp_path / name, rows, {row["file_name"]: png() for row in rows})
    (tmp_path / "lora.safetensors").write_bytes(b"junk")
    (tmp_path / "model.ckpt").write_bytes(b"junk")
    (tmp_path / "mine.py").write_text("def draw(prompts, seeds):\n    return None\n\nvalue = 3\n")
    (tmp_path / "broken.py").write_text("import nowhere_to_be_found\n")
    (tmp_path / "leaves.py").write_text("raise SystemExit(3)\n")
    return tmp_path


LOG = "suspect: {model: mini-v1}\ncontrol: {rhos: []}\nreleased: {log: log}\n"


@pytest.mark.parametrize("access", ["weights", "prompts", "pictures"])
def test_a_good_file_has_no_problems(case, access):
    assert check_file(audit_of(case, LOG, **{"suspect.access": access})) == []
    assert check_file(audit_of(case, LOG, **{"released.account": "alice"})) == []
    owned = {"owned.model": "mini-v1", "released.log": "data", "control.rhos": "[1, 0.5]"}
    assert check_file(audit_of(case, LOG, **owned, **{"control.others": "others"})) == []
    assert check_file(audit_of(case, LOG, **{"suspect": "{adapter: mine:draw}"})) == []
    answers = {"suspect.model": "data", "test.questions": 1}  # fewer are asked than might be
    assert check_file(audit_of(case, LOG, **answers)) == []
    without = {"owned": "{model: mini-v1, trained_on: data}"}
    assert check_file(audit_of(case, "suspect: {model: mini-v2}", **without)) == []


def test_a_table_of_another_form_is_no_problem(case):
    "The run reads it, too."
    (case / "data/metadata.jsonl").unlink()
    rows = "".join(f"{k}.png,{k}\n" for k in "abcdef")
    (case / "data/metadata.csv").write_text(f"file_name,text\n{rows}")
    owned = {"owned.model": "mini-v1", "released.log": "data"}
    assert check_file(audit_of(case, LOG, **owned)) == []


PROBLEMS = [  # what is given beside LOG, the key, the advice
    ({"released.key": "mine.py"}, "released.key", "give released.commitment too"),
    (
        {"released.commitment": "x.json"},
        "released.commitment",
        "no file .*x.json: give what commit",
    ),
    ({"released.commitment": "mine.py"}, "released.commitment", "is no commitment: give"),
    ({"released.log": "nowhere"}, "released.log", "there is no folder .*nowhere: give the folder"),
    ({"released.log": "nothing"}, "released.log", "nothing holds no dataset: expected metadata"),
    ({"released.log": "junk"}, "released.log", "[Pp]arquet"),
    ({"released.log": "empty"}, "released.log", "the log is empty: give another"),
    ({"released.log": "one-sided"}, "released.log", "no withheld pictures: give the released ones"),
    ({"released.log": "no-files"}, "released.log", "keeps no pictures: draw both sides again"),
    ({"released.log": "data"}, "owned.model", "no withheld pictures: give the model"),
    (
        {"released.account": "bob"},
        "released.account",
        "nothing for this account: choose from alice",
    ),
    (
        {"released": "{log: data, account: bob}"},
        "released.account",
        "names no accounts: leave the line out",
    ),
    ({"owned.model": "./models/mine"}, "owned.model", "there is no .*models/mine: give a folder"),
    ({"owned.model": "mini-v9"}, "owned.model", "there is no .*mini-v9: give a folder, or a name"),
    ({"owned.model": "data"}, "owned.model", "is not a diffusers model folder"),
    ({"suspect.base": "./x"}, "suspect.base", "there is no .*/x: give a folder"),
    ({"suspect.model": "mini-v9"}, "suspect.model", "there is no .*mini-v9: give a folder, a file"),
    ({"suspect.model": "nothing"}, "suspect.model", "no model_index.json.*give a folder"),
    ({"suspect.model": "lora.safetensors"}, "suspect.model", "cannot be read .*copy it again"),
    ({"suspect.model": "x.safetensors"}, "suspect.model", "there is no file"),
    ({"suspect.model": "model.ckpt"}, "suspect.model", "may run code.*convert it"),
    ({"suspect.model": "https:///x"}, "suspect.model", "begins no address of a service"),
    ({"suspect.model": "replicate"}, "suspect.model", "needs a value for model: give model="),
    (
        {"suspect": "{model: openai-images}"},
        "suspect.model",
        "there is no OPENAI_API_KEY in the environment: set it",
    ),
    (
        {"suspect": "{model: https://x.example/draw, access: weights}"},
        "suspect.access",
        "= 'weights': this suspect does not give that: choose from prompts",
    ),
    ({"suspect": "{model: data, access: pictures}"}, "suspect.access", "choose from prompts"),
    ({"suspect": "{adapter: mine:draw, access: weights}"}, "suspect.access", "choose from prompts"),
    (
        {"suspect.settings": "{stepz: 4}"},
        "suspect.settings.stepz",
        "= 4: .*choose from steps, guid",
    ),
    ({"suspect": "{model: data, settings: {steps: 4}}"}, "suspect.settings.steps", "leave it out"),
    (
        {"suspect": '{model: "https://x.example", settings: {headers: {Authorization: $NOT_SET}}}'},
        "suspect.settings.headers.Authorization",
        "there is no NOT_SET in the environment: set it to your key",
    ),
    ({"suspect": "{adapter: nowhere:f}"}, "suspect.adapter", "No module named 'nowhere'"),
    (
        {"suspect": "{adapter: broken:f}"},
        "suspect.adapter",
        "No module named 'nowhere_to_be_found'",
    ),
    ({"suspect": "{adapter: leaves:f}"}, "suspect.adapter", "SystemExit: 3"),
    ({"suspect": "{adapter: mine:paint}"}, "suspect.adapter", "mine.py defines no paint: give"),
    ({"suspect": "{adapter: mine:value}"}, "suspect.adapter", "cannot be called: give a function"),
    (
        {"suspect": "{kind: classifier, model: x.onnx, settings: {classes: [a, b]}}"},
        "suspect.model",
        "there is no .*x.onnx: give",
    ),
    (
        {"suspect": "{kind: classifier, model: x.pkl, settings: {classes: [a, b]}}"},
        "suspect.model",
        "pickle|there is no",
    ),
    (
        {"suspect": "{kind: classifier, model: x.csv, settings: {classes: [a, b]}}"},
        "suspect.model",
        "there is no .*x.csv: give",
    ),
    (
        {"suspect": "{kind: classifier, model: hub:a/b, settings: {names: [x], classes: [a, b]}}"},
        "suspect.settings.names",
        "no use for it: choose from mapping, prepare, device",
    ),
    (
        {"control": "{rhos: [0.5], base: mini-v1}"},
        "control.rhos",
        "shares below 1 .*control.others",
    ),
    (
        {"control": "{rhos: [1]}"},
        "control.base",
        "nothing to start from: give this, or control.rhos",
    ),
    ({"control": "{rhos: [1], base: ./x}"}, "control.base", "there is no .*/x: give a folder"),
    ({"control.others": "nowhere"}, "control.others", "there is no folder .*nowhere"),
    ({"control.others": "nothing"}, "control.others", "nothing holds no dataset"),
    (
        {"test.level": "0.0005"},
        "released.log",
        r"\(10\) no p-value is below 0.00098.*give a longer log",
    ),
    ({"test.level": "0.002", "test.draws": "99"}, "test.draws", "= 99: .*give at least 499"),
    (
        {"owned.trained_on": "data"},
        "owned.trained_on",
        "does not count with a log .*: leave it out",
    ),
    ({"lab.scale": "mini"}, "lab.scale", "does not count with a log .*: leave it out"),
    ({"lab.knobs": "{size: 32}"}, "lab.knobs", "does not count with a log .*: leave it out"),
    ({"out": "audit.yaml"}, "out", "audit.yaml is a file: choose another folder"),
    ({"lab.folder": "audit.yaml/lab"}, "lab.folder", "audit.yaml is a file: choose another folder"),
]


@pytest.mark.parametrize("given, key, advice", PROBLEMS, ids=[str(p[0])[:60] for p in PROBLEMS])
def test_a_problem_is_found_before_work_starts(case, monkeypatch, given, key, advice):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    audit = audit_of(case, LOG, **given)
    before = written(case)
    (said,) = check_file(audit)
    sentence(said.replace(str(case), "..."), rf"^(-s |audit.yaml(?: line \d+)?: ){key}\b", advice)
    assert written(case) == before
    assert said.startswith("-s ") == any(key.startswith(name) for name in given)


@pytest.mark.parametrize(
    "text, problems",
    [
        (
            "suspect: {model: mini-v1}\n",
            [
                "audit.yaml: owned.model: without a log",
                "audit.yaml: owned.trained_on: without a log",
            ],
        ),
        (
            "suspect: {model: mini-v1}\nowned:\n  model: mini-v1\n  trained_on: data\ncontrol: {}\n"
            "lab:\n  knobs: {sise: 3}\n",
            [
                "audit.yaml line 5: control = a mapping: this does not count without a log",
                "audit.yaml line 7: lab.knobs = a mapping: unknown knob 'sise': choose from",
            ],
        ),
        (
            "suspect:\n  kind: classifier\n  model: hub:a/b\nlab:\n  knobs: {size: 0.5}\n",
            ["audit.yaml line 5: lab.knobs = a mapping: size = 0.5: give a whole number"],
        ),
    ],
)
def test_without_a_log_other_keys_count(case, text, problems):
    found = check_file(audit_of(case, text))
    assert [f[: len(p)] for f, p in zip(found, problems, strict=True)] == problems


def test_a_log_is_held_against_its_commitment(case):
    key = new_key(str(case / "key"))
    new_key(str(case / "other-key"))

    def draw(texts, seeds):
        return np.stack([np.full((16, 16, 3), seed % 256, np.uint8) for seed in seeds])

    recorder = Recorder(str(case / "service"), key, draw, {"model": "grey"}, withheld=4)
    for k in range(6):
        recorder.release(f"a {k}", "alice")
    (case / "dated.json").write_text(commit(str(case / "service")))
    given = {"released.log": "service", "released.commitment": "dated.json"}
    assert check_file(audit_of(case, LOG, **given)) == []
    assert check_file(audit_of(case, LOG, **given, **{"released.key": "key"})) == []
    (said,) = check_file(audit_of(case, LOG, **given, **{"released.key": "other-key"}))
    assert "not the key that the log was begun with" in said
    recorder.release("a 6", "alice")  # a log goes on
    assert check_file(audit_of(case, LOG, **given)) == []
    journal = case / "service" / JOURNAL
    journal.write_bytes(journal.read_bytes().replace(b"a 3", b"a 9"))
    (said,) = check_file(audit_of(case, LOG, **given))
    sentence(said, "released.commitment", "line 4 was changed")


def test_a_folder_that_may_not_be_written_is_told(case, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    said = check_file(audit_of(case, LOG))
    assert len(said) == 2
    sentence(said[0], "cannot be written: choose another folder, or allow it")


def test_problems_come_in_the_order_of_the_lines_with_their_lines(case):
    text = (
        "released:\n  log: log\n  account: bob\nsuspect:\n  model: ./x\ncontrol:\n  rhos: [0.5]\n"
    )
    found = check_file(audit_of(case, text))
    assert [re.split(" = |: (?!released|suspect|control)", f)[0] for f in found] == [
        "audit.yaml line 3: released.account",
        "audit.yaml line 5: suspect.model",
        "audit.yaml line 6: control.base",
        "audit.yaml line 7: control.rhos",
    ]


def test_a_key_of_the_environment_that_is_set_is_no_problem(case, monkeypatch):
    monkeypatch.setenv("SUSPECT_KEY", SECRET)
    given = (
        '{model: "https://x.example", settings: {headers: {Authorization: "Bearer $SUSPECT_KEY"}}}'
    )
    audit = audit_of(case, LOG, suspect=given)
    assert check_file(audit) == []
    assert SECRET not in repr(audit)


def test_accesses_follow_from_what_is_given(case):
    assert accesses(Suspect(model="mini-v1")) == ("weights", "prompts", "pictures")
    assert accesses(Suspect(model="https://x.example")) == ("prompts",)
    assert accesses(Suspect(model=str(case / "data"))) == ("prompts",)
    assert accesses(Suspect(adapter="a:b")) == ("prompts",)
    assert accesses(Suspect(kind="classifier", model="a.onnx")) == ("scores", "labels")


def test_each_file_has_its_own_function(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "helper.py").write_text(f"NAME = {name!r}\n")
        (tmp_path / name / "mine.py").write_text(f"def draw(p, s):\n    return {name!r}, len(p)\n")
    text = "suspect: {adapter: mine:draw}"
    functions = [suspect_function(audit_of(tmp_path / n, text)) for n in ("one", "two")]
    assert [f("ab", "c") for f in functions] == [("one", 2), ("two", 2)]
    installed = audit_of(tmp_path / "one", "suspect: {adapter: os.path:join}")
    assert suspect_function(installed) is os.path.join


# Junk

WORDS = [
    *(
        "owned released suspect test control lab out model level rhos settings headers encoder"
    ).split(),
    *(
        "mini-v1 null ~ true .nan .inf 1e999 -0 0x1 '' [] {} [[]] {a: 1} 5 0.05 *a &a !x % @ ` |"
    ).split(" "),
    *(
        ": ",
        "\n",
        "\n  ",
        "\t",
        "- ",
        "? ",
        "#",
        "---\n",
        "...\n",
        "<<: ",
        "\x00",
        "\u2028",
        "\ud7ff",
    ),
]


def junk(rng):
    "Some text, mostly of the file's own words."
    if rng.random() < 0.2:
        return bytes(rng.randrange(256) for _ in range(rng.randrange(60)))
    pieces = rng.choices(WORDS, k=rng.randrange(1, 30))
    if rng.random() < 0.3:
        pieces += rng.choices(string.printable, k=10)
    return "".join(pieces).encode()


def nest(rng, depth=0):
    "Some values, of any kind, in the file's keys."
    kind = rng.randrange(8 if depth < 3 else 6)
    if kind > 5:
        names = rng.sample(WORDS[:13] + ["kind", "log", "x", "steps"], rng.randrange(5))
        return {name: nest(rng, depth + 1) for name in names}
    choices = [None, True, rng.uniform(-2, 2), rng.randrange(-5, 2000), rng.choice(WORDS[13:20])]
    return [nest(rng, 3) for _ in range(rng.randrange(3))] if kind == 5 else choices[kind]


def test_junk_is_read_or_refused_in_sentences(tmp_path):
    rng, file = random.Random(0), tmp_path / "audit.yaml"
    read = 0
    for k in range(500):
        text = junk(rng) if k % 2 else json.dumps(nest(rng), allow_nan=False).encode()
        file.write_bytes(text)
        value = rng.choice(["", "[", "1", "a: b", "{steps: 1}", "*"]) if k % 3 == 0 else "1"
        key = ".".join(rng.choices(WORDS[:13], k=rng.randrange(1, 4)))
        try:
            check_file(read_audit(file, {key: value} if k % 3 == 0 else None))
            read += 1
        except AuditFileError as e:
            assert e.mistakes
            for said in e.mistakes:
                assert "\n" not in said and len(said) < 600 and said.isprintable(), said
    assert [p.name for p in tmp_path.iterdir()] == ["audit.yaml"]
    assert read < 500
