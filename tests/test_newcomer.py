"What a newcomer asks is answered, in one place, and no page says otherwise."

import hashlib
import json
import re
import secrets
import shlex
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from helpers import NBS, cells

from trainprove_nb.audit.command import audit
from trainprove_nb.evidence.log_test import log_test
from trainprove_nb.evidence.release_log import COLUMNS, encode, read_log
from trainprove_nb.lab.generator_scales import generator_scale
from trainprove_nb.report.estimates import estimate, needed_recipes
from trainprove_nb.report.plan import usual_parameters
from trainprove_nb.report.results import read_results, shipped_results


def prose(page):
    "All that a page says in words."
    return "\n".join(c.source for c in cells(f"nbs/{page}.ipynb") if c.cell_type == "markdown")


# The FAQ

TOPICS = "Flux generator classifier price customers watermark mini network decide twenty λ look"


@pytest.mark.parametrize("topic", TOPICS.split())
def test_faq_answers_in_few_sentences_and_says_where_the_long_answer_is(topic):
    entries = re.split(r"^### ", prose("faq"), flags=re.M)[1:]
    (found, *_) = [e for e in entries if topic in e.partition("\n")[0]]
    assert re.search(r"\]\([\w/]+\.ipynb", found)


def anchors(page):
    "The headings of a page that a link can lead to on both sites: those without signs."
    heads = re.findall(r"^##+ (.*)$", prose(page), re.M)
    return {re.sub(r"\s+", "-", h.lower()) for h in heads if re.fullmatch(r"[\w\s-]+", h)}


@pytest.mark.parametrize("page", ["faq", "report/budget", "lab/store", "evidence/release_log"])
def test_links_to_headings_lead_somewhere(page):
    links = re.findall(r"\]\(([\w/.]+)\.ipynb#([^)]+)\)", prose(page))
    folder = (NBS / page).parent
    for file, anchor in links:
        there = (folder / file).resolve().relative_to(NBS).as_posix()
        assert anchor in anchors(there), f"{page}: {file}#{anchor}"


# No page contradicts what was run


WAYS = {  # of laundering, and how the page names them
    "JPEG": "compression",
    "half size": "shrinking",
    "crops": "cropping",
    "other words": "other words",
    "no captions": "other words",
    "another base": "other bases",
    "LoRA, rank 4": "low rank",
    "LoRA, rank 16": "low rank",
    "2 looks": "few looks",
    "4 looks": "few looks",
    "16 looks": "few looks",
    "30 looks": "few looks",
    "half the data": "little of the data",
    "a fifth of the data": "little of the data",
    "diluted": "honest pictures beside",
    "tuned on": "or after",
    "student": "students, one that learns from the suspect's answers",
    "few-step student": "one that needs few steps",
    "as it is": "Laundering",
}


def test_what_was_tried_by_those_who_hide_is_named_and_nothing_else():
    table = read_results(shipped_results("laundering"), "laundering")[1][""]
    assert set(table.way) == set(WAYS)
    told = re.split(r"^## 11\.", prose("how_wrong"), flags=re.M)[1]
    assert [words for words in WAYS.values() if words not in told] == []
    assert "No attack was tried on any test" not in told


def test_the_models_that_are_downloaded_are_those_of_the_scale():
    loaded = re.findall(r"^hf download ([\w/.-]+)", prose("stable_diffusion"), re.M)
    assert tuple(loaded) == generator_scale("paper").bases
    assert "old address" not in prose("stable_diffusion")


def test_two_pages_reckon_the_same_for_figure_6():
    recipes = needed_recipes("fig6", usual_parameters("fig6") | {"scale": "paper"})
    found = estimate(recipes, "paper")
    (told,) = [
        o["data"]["text/plain"]
        for c in cells("nbs/stable_diffusion.ipynb")
        for o in c.get("outputs", [])
        if "days for all of them" in o.get("data", {}).get("text/plain", "")
    ]
    said = {k: float(v) for k, v in re.findall(r"^(.*?) +([\d.]+)$", told, re.M)}
    assert said["models of all six sources, each once"] == found.table.needed["model"]
    assert said["days for all of them (estimated)"] == round(found.hours / 24)


# Pictures of one's own, without a generator


@pytest.fixture
def photographs(tmp_path):
    "Forty series of three pictures, of each one published by a coin, as the page has it."
    folder = tmp_path / "own"
    folder.mkdir()
    rng, rows = np.random.default_rng(0), []
    for k in range(120):
        file = encode(rng.integers(0, 256, (32, 32, 3), np.uint8), {"format": "PNG"})
        (folder / f"{k}.png").write_bytes(file)
        digest = hashlib.sha256(file).hexdigest()
        series = {"request": f"series {k // 3}", "prompt": f"a photograph of place {k // 3}"}
        rows.append({"file": f"{k}.png", "sha256": digest, "index": k % 3, **series})
    table = pd.DataFrame(rows).assign(side="withheld", account="all")
    coin = secrets.SystemRandom()
    chosen = [coin.choice(series.index) for _, series in table.groupby("request")]
    table.loc[chosen, "side"] = "released"
    table.reindex(columns=COLUMNS, fill_value="").to_parquet(folder / "log.parquet")
    return folder


def test_the_page_writes_that_log():
    sources = "\n".join(c.source for c in cells("nbs/evidence/release_log.ipynb"))
    assert "a photograph of place" in sources and "coin.choice(series.index)" in sources


def test_published_by_a_coin_is_a_log_and_the_test_finds_who_learnt_it(photographs):
    log = read_log(photographs)
    released = np.array(log["released"])
    assert released.sum() == 40 and len(set(log["block"])) == 40
    noise = np.random.default_rng(1).normal(size=120)
    assert log_test(noise + 2 * released, released, log["block"]).p < 0.001
    assert log_test(noise, released, log["block"]).p > 1e-4


def test_an_audit_takes_it(photographs):
    file = photographs.parent / "audit.yaml"
    case = {
        "released": {"log": str(photographs)},
        "suspect": {"model": "mini-v2", "base": "mini-v1"},
    }
    file.write_text(json.dumps(case))
    done = CliRunner().invoke(audit, ["check", str(file)])
    assert done.exit_code == 0, done.output
    assert "Log: 40 released pictures" in done.output and "80 withheld" in done.output


# A date for a commitment

AUTHORITY = """
[req]
distinguished_name = name
x509_extensions = stamps
prompt = no
[name]
CN = a clock
[stamps]
extendedKeyUsage = critical,timeStamping
[tsa]
default_tsa = clock
[clock]
serial = serial
default_policy = 1.2.3.4
digests = sha256
signer_digest = sha256
accuracy = secs:1
"""


def openssl(folder, command):
    "What a line of the page does in a folder."
    return subprocess.run(shlex.split(command), cwd=folder, capture_output=True, text=True)


@pytest.fixture
def authority(tmp_path):
    "A time-stamping authority of our own, in place of the one on the web."
    (tmp_path / "tsa.cnf").write_text(AUTHORITY)
    (tmp_path / "serial").write_text("01")
    made = openssl(
        tmp_path,
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -config tsa.cnf -keyout tsa.key -out authority.pem",
    )
    assert made.returncode == 0, made.stderr
    return tmp_path


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not on this machine")
def test_the_commands_by_which_a_commitment_is_dated_do_it(authority):
    page = "\n".join(c.source for c in cells("nbs/evidence/commitment.ipynb"))
    query, by_digest, post, check = re.findall(r"^(?:openssl ts|curl) .*?(?= +#|$)", page, re.M)
    assert post.startswith("curl") and post.endswith("> commitment.tsr")
    stamp = "openssl ts -reply -config tsa.cnf -section clock -queryfile commitment.tsq "
    stamp += "-inkey tsa.key -signer authority.pem -out commitment.tsr"
    file = authority / "commitment.json"
    file.write_text('{"log": "a log"}')
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    for asked in (query, by_digest.replace("DIGEST", digest)):
        for command in (asked, stamp, check):
            done = openssl(authority, command)
            assert done.returncode == 0, (command, done.stderr)
        assert "Verification: OK" in done.stdout
    file.write_text('{"log": "another log"}')
    refused = openssl(authority, check)
    assert refused.returncode != 0 and "FAILED" in refused.stdout + refused.stderr
