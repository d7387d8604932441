"Whole audits before a log, for every way in which a suspect may be given; a guilty and an innocent one each."

import base64
import io
import json
import os
import random
import secrets
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from helpers import ROOT, refused, write_imagefolder
from PIL import Image

from trainprove_nb.audit import log_audit, log_report
from trainprove_nb.audit.checks import check_file
from trainprove_nb.audit.command import audit as command
from trainprove_nb.audit.demo import shipped_report
from trainprove_nb.audit.outlook import outlook
from trainprove_nb.audit.reading import read_audit
from trainprove_nb.audit.scores import Asked
from trainprove_nb.evidence.release_log import Recorder, read_log
from trainprove_nb.models import classifiers as networks

CLASSES = ["cat", "dog"]
N = 30  # requests


def paint(prompts, seeds):
    "A picture of a seed: a colour and some grain."
    drawn = []
    for seed in seeds:
        rng = np.random.default_rng(int(seed) % 2**32)
        drawn.append(np.clip(rng.integers(0, 195, 3) + rng.integers(0, 60, (16, 16, 3)), 0, 255))
    return np.array(drawn, np.uint8)


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    "A log of a service that draws cats and dogs."
    folder, names = tmp_path_factory.mktemp("owner") / "log", random.Random(1)
    with pytest.MonkeyPatch.context() as known:  # else an innocent would be found in 1 of 20 runs
        known.setattr(secrets, "token_hex", lambda n: names.randbytes(n).hex())
        recorder = Recorder(str(folder), bytes(32), paint, {"model": "paint"}, withheld=2)
        for k in range(N):
            recorder.release(f"a {CLASSES[k % 2]} number {k}", "alice")
    return folder


@pytest.fixture(scope="module")
def released(log):
    "What was released: prompt -> picture."
    rows = read_log(str(log))
    given = [k for k in range(len(rows)) if rows["released"][k]]
    return {rows[k]["text"]: np.asarray(rows[k]["image"].convert("RGB")) for k in given}


def audit_file(folder, log, suspect, control=None, **more):
    "An audit.yaml in a folder."
    folder.mkdir(exist_ok=True)
    wanted = {
        "released": {"log": str(log)},
        "suspect": suspect,
        "test": {"draws": 999, "answers": 2} | more,
        "control": control or {"rhos": []},
        "lab": {"folder": str(folder / "lab")},
        "out": str(folder / "out"),
    }
    (folder / "audit.yaml").write_text(json.dumps(wanted))
    return folder / "audit.yaml"


def audited(file, **settings):
    "What comes of an audit: its p-value and its report."
    audit = read_audit(file, settings)
    assert check_file(audit) == []
    opened = log_audit.open_log_audit(audit)
    found = log_audit.find_out(opened, log_audit.measure(opened))
    found.controls = log_audit.run_controls(opened)
    return found.verdict.p, log_report.log_report(opened, found, "run", Path(file).read_text())


def separates(guilty, innocent):
    "The guilty is found, the innocent is not."
    assert guilty[0] <= 0.01 and guilty[1].verdict.state == "evidence"
    assert innocent[0] > 0.05 and innocent[1].verdict.state != "evidence"


# A function of one's own

GENERATORS = """
import numpy as np
import pandas as pd

KNOWN = dict(np.load({file!r}))

def innocent(prompts, seeds, noise=20):
    drawn = [np.random.default_rng([seed, len(prompt)]) for prompt, seed in zip(prompts, seeds)]
    return np.stack([rng.integers(0, 255, (16, 16, 3), np.uint8) for rng in drawn])

def guilty(prompts, seeds, noise=20):
    near = innocent(prompts, seeds).astype(int)
    for k, (prompt, seed) in enumerate(zip(prompts, seeds)):
        if prompt in KNOWN:
            near[k] = KNOWN[prompt] + np.random.default_rng(seed).normal(0, noise, (16, 16, 3))
    return np.clip(near, 0, 255).astype(np.uint8)
"""


@pytest.fixture
def generators(tmp_path, released):
    np.savez(tmp_path / "known.npz", **released)
    source = GENERATORS.format(file=str(tmp_path / "known.npz"))
    (tmp_path / "mine.py").write_text(source)
    return tmp_path


def test_a_function_of_ones_own_that_draws(generators, log):
    found = [
        audited(audit_file(generators, log, {"adapter": f"mine:{who}", "settings": {"noise": 30}}))
        for who in ("guilty", "innocent")
    ]
    separates(*found)


def test_what_an_older_version_of_the_function_answered_is_not_used(generators, log):
    file = audit_file(generators, log, {"adapter": "mine:guilty"})
    before = audited(file)
    source = (generators / "mine.py").read_text()
    (generators / "mine.py").write_text(
        source.replace("def guilty", "def other", 1) + "\nguilty = innocent\n"
    )
    separates(before, audited(file))


# A folder of answers


def test_collected_answers(tmp_path, log, released):
    rng = np.random.default_rng(4)
    near = [
        np.clip(x.astype(int) + rng.normal(0, 20, x.shape), 0, 255).astype(np.uint8)
        for x in released.values()
    ]
    for who in ("guilty", "innocent"):
        (tmp_path / who).mkdir()
    write_imagefolder(tmp_path / "guilty", near, list(released))
    write_imagefolder(tmp_path / "innocent", paint(released, range(90, 120)), list(released))
    found = [
        audited(audit_file(tmp_path, log, {"model": str(tmp_path / who)}, answers=1))
        for who in ("guilty", "innocent")
    ]
    separates(*found)


# Services, which want a key


@pytest.fixture
def service(monkeypatch, released):
    """A service that draws or names: its address, and the questions that it was asked.

    Whoever has no key is sent away."""
    known = {x.tobytes(): prompt.split()[1] for prompt, x in released.items()}
    rng = np.random.default_rng(5)

    def drawn(question, guilty):
        prompt, seed = question["prompt"], question["seed"]
        picture = paint([""], [seed + len(prompt)])[0]
        if guilty and prompt in released:
            near = np.random.default_rng(seed % 2**32).normal(0, 20, (16, 16, 3))
            picture = released[prompt] + near
        file = io.BytesIO()
        Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).save(file, "png")
        return {"image": base64.b64encode(file.getvalue()).decode()}

    def named(question, guilty):
        picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(question["image"]))))
        scores = {name: rng.random() for name in CLASSES}
        if guilty and (name := known.get(picture.tobytes())):
            scores[name] += 5
        return {"scores": scores}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            let_in = self.headers.get("X-Key") == "sk-zebra"
            asked.append(question)
            self.send_response(200 if let_in else 401)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            answer = named if "image" in question else drawn
            told = (
                answer(question, "guilty" in self.path) if let_in else {"error": "sk-zebra wanted"}
            )
            self.wfile.write(json.dumps(told).encode())

        def log_message(self, *_):
            pass

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("THEIR_KEY", "sk-zebra")
    asked, server = [], ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


HEADERS = {"headers": {"X-Key": "$THEIR_KEY"}}


def test_a_service_that_draws(tmp_path, log, service):
    url, asked = service
    found = [
        audited(audit_file(tmp_path, log, {"model": f"{url}/{who}", "settings": HEADERS}))
        for who in ("guilty", "innocent")
    ]
    separates(*found)
    count = len(asked)
    again = audited(audit_file(tmp_path, log, {"model": f"{url}/guilty", "settings": HEADERS}))
    assert again[0] == found[0][0]
    assert len(asked) - count <= 4  # the suspect is tried each time; no question is repeated
    assert not any(
        "zebra" in p.read_text(errors="replace") for p in tmp_path.rglob("*") if p.is_file()
    )


def test_a_service_without_its_key(tmp_path, log, service, monkeypatch):
    url, _ = service
    file = audit_file(tmp_path, log, {"model": f"{url}/guilty", "settings": HEADERS})
    monkeypatch.setenv("THEIR_KEY", "sk-other")
    refused(lambda: audited(file), "401")
    monkeypatch.delenv("THEIR_KEY")
    assert "THEIR_KEY" in " ".join(check_file(read_audit(file)))


def test_what_is_forgotten_is_asked_again(tmp_path, log, service):
    url, asked = service
    file = audit_file(tmp_path, log, {"model": f"{url}/guilty", "settings": HEADERS})
    audited(file)
    for words, again in ((["--prompt", "number 7"], 2), ([], 2 * N)):
        done = CliRunner().invoke(command, ["forget", str(file), *words])
        assert done.exit_code == 0, done.output
        count = len([q for q in asked if q["prompt"].startswith("a ")])
        audited(file)
        later = [q["prompt"] for q in asked if q["prompt"].startswith("a ")][count:]
        assert sum("number" in prompt for prompt in later) == again, later


# Classifiers


def classifier(url, who):
    return {
        "kind": "classifier",
        "model": f"{url}/{who}",
        "settings": {**HEADERS, "classes": CLASSES},
    }


def test_a_service_that_names(tmp_path, log, service):
    url, asked = service
    found = [
        audited(audit_file(tmp_path / who, log, classifier(url, who), questions=90))
        for who in ("guilty", "innocent")
    ]
    separates(*found)
    assert len(asked) == 2 * 90
    audited(tmp_path / "guilty" / "audit.yaml")
    assert len(asked) == 2 * 90


@pytest.mark.parametrize("budget, pictures, versions", [(540, 90, 6), (200, 90, 2), (50, 48, 1)])
def test_a_budget_of_showings(tmp_path, log, service, budget, pictures, versions):
    url, asked = service
    _, report = audited(audit_file(tmp_path, log, classifier(url, "innocent"), questions=budget))
    assert len(asked) <= pictures * versions <= budget
    assert f"{pictures * versions} questions" in report.model_dump_json()


def test_a_table_of_answers_is_one_of_the_whole_log(tmp_path, log):
    "With fewer rows than pictures, or more, nobody knows whose they are."
    rows = read_log(str(log))
    sure = [0.9 if released else 0.6 for released in rows["released"]]
    right = [CLASSES.index(text.split()[1]) for text in rows["text"]]
    table = pd.DataFrame({"file_name": [f"{k:06}.png" for k in range(len(rows))]})
    for j, name in enumerate(CLASSES):
        table[name] = [p if j == k else 1 - p for p, k in zip(sure, right, strict=True)]
    suspect = {
        "kind": "classifier",
        "model": str(tmp_path / "a.csv"),
        "settings": {"classes": CLASSES},
    }
    table.to_csv(tmp_path / "a.csv", index=False)
    for budget in (48, 1500):  # what is answered already costs no question
        p, report = audited(audit_file(tmp_path, log, suspect, questions=budget))
        assert p <= 0.01 and "90 questions: 90 pictures, 1 versions" in report.model_dump_json()
    pd.concat([table, table.assign(file_name="x" + table.file_name)]).to_csv(
        tmp_path / "a.csv", index=False
    )
    with pytest.raises(ValueError, match="answers to 180 pictures, and the log has 90"):
        audited(audit_file(tmp_path, log, suspect))


def test_a_classifier_before_a_log_needs_its_classes(tmp_path, log, service):
    suspect = classifier(service[0], "guilty")
    del suspect["settings"]["classes"]
    assert "needs classes" in " ".join(check_file(read_audit(audit_file(tmp_path, log, suspect))))
    file = audit_file(tmp_path, log, classifier(service[0], "guilty"))
    wanted = json.loads(file.read_text())
    del wanted["released"]
    file.write_text(json.dumps(wanted))
    assert "leave it out" in " ".join(check_file(read_audit(file)))


def test_a_classifier_is_compared_to_a_classifier(tmp_path, log, service):
    suspect = classifier(service[0], "guilty") | {"base": str(tmp_path / "owner")}
    file = audit_file(tmp_path / "case", log, suspect)
    told = " ".join(check_file(read_audit(file)))
    assert "suspect.base" in told and "there is no" in told and "diffusers" not in told
    (tmp_path / "owner").mkdir()
    assert "no config.json" in " ".join(check_file(read_audit(file)))
    (tmp_path / "owner/config.json").write_text("{}")
    assert check_file(read_audit(file)) == []


def test_a_classifier_s_control_makes_nothing_found_mean_something(tmp_path, log, service):
    file = audit_file(tmp_path, log, classifier(service[0], "innocent"), control={"rhos": [1]})
    _, report = audited(file)
    assert report.verdict.state == "no evidence"
    assert "cannot decide" not in " ".join(outlook(read_audit(file)))


def test_a_classifier_s_control_needs_no_model_that_draws(tmp_path, log, service):
    "Where the suspect is compared to a classifier of the owner's, controls are made all the same."
    networks.save_classifier(networks.classifier("resnet", CLASSES), str(tmp_path / "owner"))
    suspect = classifier(service[0], "innocent") | {"base": str(tmp_path / "owner")}
    file = audit_file(tmp_path / "case", log, suspect, control={"rhos": [1], "steps": 2})
    _, report = audited(file)
    assert [part.name for part in report.controls][-1] == "Control at ρ = 1"


@pytest.mark.parametrize("access", ["scores", "labels"])
def test_a_control_is_asked_as_the_suspect_is(tmp_path, log, service, access):
    suspect = classifier(service[0], "innocent") | {"access": access}
    opened = log_audit.open_log_audit(read_audit(audit_file(tmp_path, log, suspect)))
    own = log_audit.measure(opened).scores
    control = Asked(lambda images: np.tile([2.0, 1.0], (len(images), 1)), {})
    by_labels = [
        set(np.round(x * 6, 9)) <= set(range(7))
        for x in (own, log_audit.measure(opened, control).scores)
    ]
    assert by_labels == [access == "labels"] * 2


def test_the_command_does_it_and_says_so(tmp_path, log, service):
    file = audit_file(tmp_path, log, classifier(service[0], "guilty"))
    checked = CliRunner().invoke(command, ["check", str(file)])
    assert checked.exit_code == 0 and "each of 90 pictures is shown" in checked.output
    done = CliRunner().invoke(command, ["run", str(file)])
    assert done.exit_code == 1, done.output
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["verdict"]["state"] == "evidence"
    everything = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert len(everything) > 5
    assert not any(b"zebra" in p.read_bytes() for p in everything)


# Killed


KILLS = int(os.environ.get("AUDIT_KILLS", 1))
MOMENTS = (6, 20)  # seconds after the start: while it imports, asks, or writes


def undated(report):
    "A report as text, without the day."
    told = json.loads(report.read_text())
    told["asked"] = [fact for fact in told["asked"] if fact["name"] != "date"]
    return json.dumps(told, indent=1)


def test_killed_at_any_moment(tmp_path, log, service):
    "The report is the same, and no question was put twice."
    url, asked = service
    suspect = {"model": f"{url}/guilty", "settings": HEADERS}
    file = audit_file(tmp_path / "case", log, suspect)
    report = tmp_path / "case" / "out" / "report.json"
    assert CliRunner().invoke(command, ["run", str(file)]).exit_code == 1
    whole = undated(report)
    for folder in ("out", "lab"):
        shutil.rmtree(tmp_path / "case" / folder)
    asked.clear()
    rng = np.random.default_rng(6)
    for _ in range(KILLS):
        started = [sys.executable, "-m", "trainprove_nb.cli", "audit", "run", str(file)]
        process = subprocess.Popen(started, cwd=ROOT, stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(*MOMENTS))
        process.kill()
        process.wait()
    assert CliRunner().invoke(command, ["run", str(file)]).exit_code == 1
    assert undated(report) == whole
    counted = Counter((q["prompt"], q["seed"]) for q in asked if "number" in q["prompt"])
    assert len(counted) == 2 * N and set(counted.values()) == {1}


def test_a_report_names_the_classifier_that_the_suspect_is_compared_to():
    told = {fact.name: fact.value for fact in shipped_report("innocent", "classifier").asked}
    assert "lab/classifier/" in told["compared with"] != told["suspect"]
