"The pages that lead into the book: they say what the results say, and what they tell a reader to do works."

import ast
import json
import re
import shlex

import matplotlib
import pandas as pd
import pytest
import yaml
from helpers import NBS, NOTEBOOKS, ROOT, cells, run
from IPython.lib.pretty import pretty

from trainprove_nb.audit.cases import audit_rates, confusion
from trainprove_nb.audit.demo import shipped_report
from trainprove_nb.cli import experiments
from trainprove_nb.lab.generator_scales import generator_scale
from trainprove_nb.report.headlines import (
    attribution_headlines,
    evidence_headlines,
    provenance_headlines,
)
from trainprove_nb.report.laundered import lost
from trainprove_nb.report.results import read_results, shipped_results

GUIDES = ("audit/with_a_log", "audit/without_a_log")  # each runs commands, and was run when written
PAGES = ("which_test", "readings", "faq", "stable_diffusion")  # cheap enough to be run here


def code(page):
    "The cells of code of a page that are run, in their order."
    found = [c for c in cells(f"nbs/{page}.ipynb") if c.cell_type == "code"]
    return [c for c in found if "eval: false" not in c.source]


def prose(page):
    "All that a page says in words."
    return "\n".join(c.source for c in cells(f"nbs/{page}.ipynb") if c.cell_type == "markdown")


def shown(source, names):
    "Run a cell; returns what its last line shows, as text, or None."
    *before, last = ast.parse(source).body
    if not isinstance(last, ast.Expr):
        before, last = [*before, last], None
    exec(compile(ast.Module(before, []), "cell", "exec"), names)
    if last is None:
        return None
    value = eval(compile(ast.Expression(last.value), "cell", "eval"), names)
    return None if value is None else pretty(value)  # as Jupyter prints it


def stored(cell):
    "What the page shows as the value of a cell: its text, or None."
    found = [o["data"].get("text/plain") for o in cell.outputs if o.output_type == "execute_result"]
    return found[0] if found else None


@pytest.mark.parametrize("page", PAGES)
def test_page_shows_what_the_results_say(page, monkeypatch):
    matplotlib.use("Agg")
    monkeypatch.chdir(NBS)
    names = {"__name__": "page"}
    compared = 0
    for cell in code(page):
        with pd.option_context("display.max_columns", 20, "display.width", 80):  # as in Jupyter
            text = shown(cell.source, names)
        if text is not None and " object at 0x" not in text:
            assert text == stored(cell), f"run nbs/{page}.ipynb again, cell {cell.id}"
            compared += 1
    assert compared >= 2


# The tour


def ten_lines():
    "The cell of the tour that is meant to be pasted."
    (found,) = [c.source for c in cells("nbs/tour.ipynb") if "eval: false" in c.source]
    return found


def test_ten_lines_are_ten_and_run(tmp_path):
    "Shortened: how much an infringer learns in so few steps is not asked."
    source = ten_lines()
    lines = [x for x in source.splitlines() if x.strip() and not x.startswith("#|")]
    assert len(lines) == 10
    short = re.sub(r"steps=\d+", "steps=2", source)
    assert short.count("steps=2,") + short.count("steps=2)") == 2
    done = run("-c", short, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert 0 < float(done.stdout) <= 1
    assert list(tmp_path.iterdir()) == []


def test_the_front_page_has_the_same_ten_lines():
    code = ten_lines().partition("\n")[2]
    assert f"\n```python\n{code}\n```\n" in (ROOT / "README.md").read_text()


def test_tour_finds_the_one_and_not_the_other():
    "What the page shows is what its prose says: it was run when it was written."
    html = "".join(json.dumps(c.outputs) for c in code("tour"))
    p = {k: float(v) for k, v in re.findall(r"(infringing|innocent) +-?[\d.]+ +([\d.]+)", html)}
    assert p["infringing"] < 0.01 and p["innocent"] > 0.05, p
    pictures = [o for c in code("tour") for o in c.outputs if "image/png" in o.get("data", {})]
    assert len(pictures) == 3


# Which test


def test_every_test_of_the_table_has_a_promise_and_a_cost():
    sources = "\n".join(c.source for c in code("which_test"))
    (costs,) = re.findall(r"^COSTS = \{(.*?)^\}", sources, re.M | re.S)
    (found,) = re.findall(r"^FOUND = \{(.*?)^\}", sources, re.M | re.S)
    names = [re.findall(r'^    "([\w ]+)":', text, re.M) for text in (costs, found)]
    assert names[0] == names[1] and len(names[0]) == 8
    promises = [row for row in prose("which_test").splitlines() if re.match(r"\| [a-z].*\*\*", row)]
    assert (
        len(promises) == 10
    )  # redrawn logs, and logs before classifiers, have their costs elsewhere


def test_washing_both_sides_brings_back_what_the_faq_says():
    table = read_results(shipped_results("laundering"), "laundering")[1][""]
    assert "that brought back JPEG and half size, and crops never" in prose("faq")
    washed = table[table.access == "open weights, washed"]
    assert set(washed.way) == {"JPEG", "half size", "crops"}
    assert lost(table, "open weights, washed", 1.0) == ["crops"]
    assert {"JPEG", "crops"} <= set(lost(table, "open weights", 1.0))


def test_students_of_launderers_are_found_as_the_faq_says():
    assert "at ρ = 1, students were found, one that learnt from answers and one of few" in prose(
        "faq"
    )
    table = read_results(shipped_results("laundering"), "laundering")[1][""]
    for access in ("open weights", "prompts only"):
        assert not {"student", "few-step student"} & set(lost(table, access, 1.0))


# Readings


def reads_papers(path):
    "Whether a notebook says in words that something is our reading."
    words = [c.source for c in cells(path) if c.cell_type == "markdown"]
    return any(re.search(r"\bour reading", text, re.I) for text in words)


def test_readings_lists_every_page_that_has_one():
    "Whoever writes `our reading` into a notebook adds a line to the list."
    known = {"readings", "glossary", "how_wrong", "index", "faq"}
    written = [p for p in NOTEBOOKS if p.stem not in known and not p.name.endswith(".drawn.ipynb")]
    having = [p for p in written if reads_papers(p)]
    linked = set(re.findall(r"\]\(([\w/]+\.ipynb)", prose("readings")))
    missing = [str(p) for p in having if p.relative_to("nbs").as_posix() not in linked]
    assert len(having) > 10 and missing == []


# Stable Diffusion


def test_sizes_are_those_of_stable_diffusion():
    "In millions, as published: the configurations on the page are the real ones'."
    (table,) = [t for c in code("stable_diffusion") if "UNet, millions" in (t := stored(c) or "")]
    rows = {r[0]: [int(n) for n in r[1:]] for r in map(str.split, table.splitlines()[1:])}
    assert rows["v1-5"] == [860, 123, 84]
    assert rows["v2-1"] == [866, 340, 84]


def commands():
    "The commands of the page that draw figures, as lists of words."
    blocks = re.findall(r"```bash\n(.*?)```", prose("stable_diffusion"), re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.startswith("trainprove ")]


@pytest.mark.parametrize("command", commands(), ids=lambda c: c[c.index("--lab") + 1])
def test_commands_name_knobs_that_are_there(command):
    settings = [value for flag, value in zip(command, command[1:], strict=False) if flag == "-s"]
    asked = {k: yaml.safe_load(v) for k, _, v in (s.partition("=") for s in settings)}
    source = ROOT / experiments()[command[2]]
    (cell,) = [c for c in cells(source) if "parameters" in c.metadata.get("tags", [])]
    parameters = {n.target.id for n in ast.parse(cell.source).body}
    assert set(asked) <= parameters
    scale = generator_scale("paper", asked["knobs"])
    assert scale.bases == ("models/sd-v1-5", "models/sd-v2-1")
    known = [f"sd-v1-5-{c.split('/')[1]}" for c in scale.corpora]
    assert all(s in known for s in asked.get("sources", []))


def test_a_knob_that_is_not_there_would_be_noticed():
    with pytest.raises(ValueError, match="pares"):
        generator_scale("paper", {"pares": 20})


# FAQ


@pytest.mark.parametrize("topic", "LoRA SDXL laundered machines log chose long lead".split())
def test_faq_has_a_heading_for(topic):
    headings = [x for x in prose("faq").splitlines() if x.startswith("### ")]
    assert any(topic in x for x in headings)


NOT_PROSE = r"\[[^]]*\]\([^)]*\)|`[^`]*`|```.*?```|image to image|text-to-image|imagefolder"  # links, code, names


@pytest.mark.parametrize("page", ["tour", "extending", *GUIDES, *PAGES])
def test_pages_say_pictures(page):
    said = re.sub(NOT_PROSE, "", prose(page), flags=re.S | re.I)
    assert re.findall(r"\bimages?\b", said) == []


# Reports that were shipped

CASES = [(who, kind) for kind in ("generator", "classifier") for who in ("infringing", "innocent")]


def htmls(page):
    "What a page shows as HTML, in its order."
    outputs = [o for c in code(page) for o in c.outputs]
    return ["".join(o.data["text/html"]) for o in outputs if "text/html" in o.get("data", {})]


@pytest.mark.parametrize("who, kind", CASES)
def test_the_infringing_are_found_and_the_innocent_not(who, kind):
    verdict = shipped_report(who, kind).verdict
    assert verdict.state == ("evidence" if who == "infringing" else "no evidence")


def test_the_page_shows_the_reports_that_were_shipped():
    assert htmls("audit/reports") == [shipped_report(*case)._repr_html_() for case in CASES]


def test_the_log_audit_shows_the_run_of_the_first_report():
    shown = [
        "".join(o.data.get("text/markdown", ""))
        for c in code("audit/audit_log")
        for o in c.outputs
        if "data" in o
    ]
    assert f"**{shipped_report('infringing').verdict.sentence}**" in shown


def test_a_demonstration_without_reports_is_not_shipped(tmp_path):
    done = run("tools/ship_demo.py", str(tmp_path))
    assert done.returncode == 1 and "has no report: run make audit" in done.stderr


# Guides


def outputs(page):
    "All that a page shows as text."
    found = [o for c in code(page) for o in c.outputs]
    texts = [o.get("text") or o.get("data", {}).get("text/plain", "") for o in found]
    told = [o.get("data", {}).get("text/markdown", "") for o in found]
    return "\n".join(map("".join, texts + told))


def test_the_guide_with_a_log_shows_the_shipped_verdicts_and_finds_its_own():
    told = outputs("audit/with_a_log")
    for who in ("infringing", "innocent"):
        report = shipped_report(who)
        assert report.verdict.sentence in told
    assert all(line in told for line in report.cannot_tell)
    assert "exit code 1" in told and told.count("Evidence at level 0.05") == 3
    assert "Error: -s test.level = 5: give a number" in told
    audits = read_results(shipped_results("audits"), "audits")[1][""]
    assert str(confusion(audits)) in told and str(audit_rates(audits)) in told


def test_the_guide_without_a_log_shows_what_was_measured():
    told = outputs("audit/without_a_log")
    logs, classes = evidence_headlines(), provenance_headlines()
    shown = [logs["weights_innocent"], classes["origin_unknown"], classes["trainprove_false"]]
    shown.append(attribution_headlines()["auc_same"])
    assert [x for x in shown if x not in told] == []
    found = read_results(shipped_results("audit_generator"), "audit_generator")[2]["verdict"]
    assert f"the largest counts: {found['index']:.2f}" in told and "cannot decide" in told
    assert "There is no log, so no guarantee" in told and "this is needed: give it" in told


NUMBER = r"(?<![\w.:/-])\d+(?:[.,]\d+)*(?![\w.-])"


@pytest.mark.parametrize("page", GUIDES)
def test_a_guide_says_no_measured_number_in_words(page):
    "What is left is of the questions: levels, the exit codes, numbers of a list, AUC's own ends."
    said = re.sub(NOT_PROSE, "", prose(page), flags=re.S | re.I)
    said = re.sub(r"^(#+ )?\d\. ", "", said, flags=re.M)
    assert set(re.findall(NUMBER, said)) <= {"16", "0", "1", "2", ".05", ".01", "05", "01", "5"}


# All names


def all_names():
    "Names on the list: (name, where its link leads)."
    (shown,) = ["".join(o.data["text/markdown"]) for c in code("api") for o in c.outputs]
    return re.findall(r"\[<code>(\w+)</code>\]\(([\w/]+\.ipynb)", shown), shown


def test_every_public_name_is_on_the_list_once_at_its_place():
    listed, _ = all_names()
    expected = []
    for path in NOTEBOOKS:
        text = "\n".join(c.source for c in cells(path))
        if found := re.search(r"^#\| default_exp (\S+)", text, re.M):
            module = (ROOT / "trainprove_nb" / found[1].replace(".", "/")).with_suffix(".py")
            names = re.search(r"^__all__ = (\[.*?\])", module.read_text(), re.M | re.S)[1]
            expected += [(n, path.relative_to("nbs").as_posix()) for n in ast.literal_eval(names)]
    assert len(expected) > 900 and sorted(listed) == sorted(expected)


def test_the_list_is_what_its_code_makes_of_the_package(monkeypatch):
    monkeypatch.chdir(NBS)
    names = {}
    for cell in code("api"):
        shown(cell.source, names)
    made = "\n".join(line for entry in names["book"] for line in names["chapter"](entry))
    assert made == all_names()[1], "run nbs/api.ipynb again"


def test_every_name_says_what_it_is():
    rows = [row for row in all_names()[1].splitlines() if "<code>" in row]
    assert [row for row in rows if not re.search(r"\) \| \S.* \|$", row)] == []


def test_the_list_is_in_reading_order_by_chapter():
    contents = yaml.safe_load((NBS / "sidebar.yml").read_text())["website"]["sidebar"]["contents"]
    order = [p for e in contents for p in (e["contents"] if isinstance(e, dict) else [e])]
    listed = list(dict.fromkeys(place for _, place in all_names()[0]))
    assert listed == [p for p in order if p in listed]
