"What is told of the numbers: intervals of figures, the claims page, and what is shipped."

import io
import itertools
import json
import re
import shutil
from base64 import b64encode

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
import scipy.stats
from helpers import DRAWN, NBS, NOTEBOOKS, ROOT, cells, pictures_of, played, refused, run
from PIL import Image

from trainprove_nb import cli
from trainprove_nb.report.figures import pooled_intervals
from trainprove_nb.report.findings import read_findings
from trainprove_nb.report.plan import earlier_run

RESULTS = NBS / "experiments/results"


# Figures


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


# Claims


def test_claims_without_results(tmp_path):
    notebook = nbformat.read(cli.experiments()["claims"], 4)
    names = {}

    def run():
        for c in notebook.cells:
            if c.cell_type != "code":
                continue
            exec(c.source, names)
            if "parameters" in c.metadata.get("tags", []):
                names["out"] = str(tmp_path / "claims")

    refused(
        run,
        "no results of fig6, fig7, hard, table1, table2, trainprove, batchsize",
        "run trainprove figures fig6",
    )
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


@pytest.mark.parametrize(
    "name, changes, says",
    [
        ("fig6", {"delta0": 0.2}, "^fig6 was drawn with delta0 = 0.2.*draw it again without"),
        ("table1", {"N": 20}, "^table1 was drawn with .*N = 20.*draw it again without"),
        ("table2", {"scale": "gpu"}, "several scales .*table2: gpu.*draw them all at one"),
        ("fig7", {"sources": ["mini-v1"]}, "^fig6, fig7, .* different sources.*with the same"),
        ("hard", {"knobs": {"pairs": 9}}, "^fig6, hard were drawn with different knobs"),
        ("batchsize", {"knobs": {"seeds": 9}}, "^trainprove, batchsize .* different knobs"),
    ],
)
def test_claims_of_results_that_do_not_go_together(tmp_path, name, changes, says):
    shutil.copytree(RESULTS, tmp_path / "results")
    assert read_findings(tmp_path / "results")
    file = tmp_path / "results" / name / f"{name}.json"
    told = json.loads(file.read_text())
    assert set(changes) <= set(told["parameters"])
    file.write_text(json.dumps({**told, "parameters": told["parameters"] | changes}))
    refused(lambda: read_findings(tmp_path / "results"), says)


# What is shown is what the shipped results say


def parameters(path):
    "Names of a notebook's parameters."
    source = "\n".join(c.source for c in cells(path) if "parameters" in c.metadata.get("tags", []))
    return re.findall(r"^(\w+):", source, re.M)


REDRAWN = {
    p.stem: p
    for p in NOTEBOOKS
    if {"redraw", "results"} & set(parameters(p)) and "out" in parameters(p)
}
ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # of an object in memory
NUMBER = re.compile(r"(?<![\w.])[-−]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?", re.I)


def last_digit(number):
    "What one more in the last shown digit of a number is worth; nothing, where it is whole."
    digits, _, exponent = number.lower().partition("e")
    places = len(digits.partition(".")[2])
    return 10.0 ** (int(exponent or 0) - places) if places else 0.0


def value(number):
    return float(number.replace(",", "").replace("−", "-"))


def same_word(one, other):
    "Whether two words are the same, up to one in the last shown digit of what is not whole."
    numbers = [NUMBER.findall(word) for word in (one, other)]
    return NUMBER.sub("#", one) == NUMBER.sub("#", other) and all(
        abs(value(a) - value(b)) <= 1.01 * max(last_digit(a), last_digit(b))
        for a, b in zip(*numbers, strict=True)
    )


def difference(one, other):
    "The first words in which two texts differ by more than rounding; nothing, where they do not."
    for a, b in itertools.zip_longest(one.split(), other.split(), fillvalue=""):
        if not same_word(a, b):
            return f"{a!r}, drawn again {b!r}"
    return ""


def same_picture(one, other):
    "Whether two PNG files show the same, up to what a font's edges do."
    a, b = (np.asarray(Image.open(io.BytesIO(x)).convert("RGB"), float) for x in (one, other))
    return a.shape == b.shape and np.abs(a - b).mean() < 0.2


def differences(one, other):
    "Kinds of content in which an output of a cell differs from another."
    for kind in sorted(set(one.data) | set(other.data)):
        if kind.startswith("text/"):
            texts = [
                ADDRESS.sub("", DRAWN.sub("", "".join(o.data.get(kind, "")))) for o in (one, other)
            ]
            if found := difference(*texts):
                yield f"{kind}: {found}"
    pictures = [pictures_of(o) for o in (one, other)]
    if len(pictures[0]) != len(pictures[1]) or not all(map(same_picture, *pictures)):
        yield "picture"


def as_data(output):
    "An output of a cell; what was printed as a text like others."
    data = output.get("data") or {"text/plain": output.get("text", "")}
    return nbformat.v4.new_output("display_data", data)


def shown(path):
    "Outputs of a notebook's cells, warnings left out: cell -> outputs."
    found = {}
    for cell in nbformat.read(path, 4).cells:
        outputs = [o for o in cell.get("outputs", []) if o.get("name") != "stderr"]
        if outputs:
            found[cell.id] = [as_data(o) for o in outputs]
    return found


def not_the_same(committed, drawn):
    "Cells whose outputs differ, and where."
    wrong = {}
    for cell in committed | drawn:
        pair = committed.get(cell, []), drawn.get(cell, [])
        if len(pair[0]) != len(pair[1]):
            wrong[cell] = [f"{len(pair[0])} outputs, drawn again {len(pair[1])}"]
        elif kinds := [k for a, b in zip(*pair, strict=True) for k in differences(a, b)]:
            wrong[cell] = kinds
    return wrong


@pytest.mark.parametrize(
    "one, other, same",
    [
        ("0.57 (0.45–0.68)", "0.58 (0.45–0.68)", True),
        ("0.57 (0.45–0.68)", "0.59 (0.45–0.68)", False),
        ("48 of 48", "47 of 48", False),
        ("1,024 runs", "1,025 runs", False),
        ("p = 1.2e-05", "p = 1.3e-05", True),
        ("p = 1.2e-05", "p = 1.2e-04", False),
        ("rho −0.10", "rho −0.11", True),
        ("rho −0.10", "rho 0.10", False),
        ("a   0.5\nb", "a 0.5 b", True),
        ("holds: 0.50", "fails: 0.50", False),
        ("0.5 and 0.5", "0.5", False),
    ],
)
def test_texts_are_the_same_up_to_rounding(one, other, same):
    assert (not difference(one, other)) == (not difference(other, one)) == same


def test_another_picture_is_noticed():
    def drawn(x):
        out = io.BytesIO()
        fig, ax = plt.subplots(figsize=(9.3, 4))
        ax.plot([0, 1, 2], [0, x, 1], "o-", ms=4)
        fig.savefig(out, format="png", dpi=80)
        plt.close(fig)
        return b64encode(out.getvalue()).decode()

    one, other = drawn(0.5), drawn(0.6)
    for kind, page in (("image/png", "{}"), ("text/html", '<img src="data:image/png;base64,{}">')):
        first, second = (as_data({"data": {kind: page.format(x)}}) for x in (one, other))
        assert list(differences(first, first)) == []
        assert list(differences(first, second)) == ["picture"]
    text = as_data({"output_type": "stream", "text": "1"})
    committed = {"a": [first], "b": [text]}
    assert not_the_same(committed, committed) == {}
    assert set(not_the_same(committed, {"a": [second], "c": [text]})) == {"a", "b", "c"}


@pytest.fixture(scope="module")
def redrawn(tmp_path_factory):
    "Draw an experiment again from its shipped results, once: name -> its folder."
    folder = tmp_path_factory.mktemp("redrawn")

    done = set()

    def draw(name):
        out = folder / name
        if name not in done:
            out.mkdir(exist_ok=True)
            known = parameters(REDRAWN[name])
            given = {
                "redraw": RESULTS / name,
                "results": RESULTS,
                "lab": folder / "lab",
                "out": out,
            }
            settings = {k: str(given[k]) for k in given if k in known}
            played(ROOT / REDRAWN[name], out, **settings)
            done.add(name)
        return out

    return draw


def test_every_experiment_with_results_can_be_drawn_again():
    assert set(REDRAWN) == {p.name for p in RESULTS.iterdir() if p.is_dir()}


@pytest.mark.parametrize("name, file", [("fig7", "fig7"), ("trainprove", "trainprove_ablations")])
def test_results_without_a_table_are_refused_in_one_sentence(tmp_path, name, file):
    shutil.copytree(RESULTS / name, tmp_path / name)
    (tmp_path / name / f"{file}.csv").unlink()
    refused(
        lambda: earlier_run(name, {}, str(tmp_path / name)),
        f"no {file}.csv in",
        "give the folder",
        error=FileNotFoundError,
    )


@pytest.mark.parametrize("name", sorted(REDRAWN))
def test_page_shows_what_the_shipped_results_say(redrawn, name):
    found = not_the_same(shown(ROOT / REDRAWN[name]), shown(redrawn(name) / f"{name}.ipynb"))
    assert found == {}, f"python tools/ship.py figures/mini {name}"


@pytest.mark.parametrize("name", sorted(REDRAWN))
def test_drawing_again_changes_no_number_and_touches_no_model(redrawn, name):
    drawn, shipped = redrawn(name), RESULTS / name
    tables = sorted(p.name for p in shipped.glob("*.csv"))
    assert sorted(p.name for p in drawn.glob("*.csv")) == tables
    for table in tables:  # up to rounding: processors differ in the last digit
        pd.testing.assert_frame_equal(*(pd.read_csv(f / table) for f in (drawn, shipped)))
    told = [json.loads((f / f"{name}.json").read_text()) for f in (drawn, shipped)]
    assert set(told[0]) == set(told[1])
    assert {k: v for k, v in told[0]["parameters"].items() if k not in ("redraw", "results")} == {
        k: v for k, v in told[1]["parameters"].items() if k not in ("redraw", "results")
    }
    lab = drawn.parent / "lab"
    assert [p for p in lab.rglob("*") if p.is_file()] == []


# Shipping


def test_outputs_are_shipped_unless_they_are_of_other_code(copy, tmp_path):
    notebook, drawn = copy / "nbs/experiments/claims.ipynb", tmp_path / "drawn/claims"
    drawn.mkdir(parents=True)
    (drawn / "claims.csv").write_text("new\n1\n")
    for name in ("claims.json", "run.json"):
        (drawn / name).write_text('{"new": 1}')
    before, nb = notebook.read_bytes(), json.loads(notebook.read_text(encoding="utf-8"))
    last = [c for c in nb["cells"] if c["cell_type"] == "code"][-1]
    progress = {"output_type": "stream", "name": "stderr", "text": ["100%"]}
    last["outputs"] = [
        progress,
        {
            "output_type": "execute_result",
            "execution_count": 7,
            "metadata": {},
            "data": {"text/plain": ["a new verdict"]},
        },
    ]
    source, last["source"] = last["source"], ["1 + 1"]
    nb["metadata"]["papermill"] = {"end_time": "2026-01-01T00:00:00"}
    (drawn / "claims.ipynb").write_text(json.dumps(nb))
    done = run("tools/ship.py", str(tmp_path / "drawn"), "claims", cwd=copy)
    assert (
        done.returncode == 1
        and "ran other code" in done.stderr
        and last["id"] in done.stderr
        and notebook.read_bytes() == before
    )
    last["source"], nb["metadata"]["papermill"] = source, {"end_time": None}
    (drawn / "claims.ipynb").write_text(json.dumps(nb))
    done = run("tools/ship.py", str(tmp_path / "drawn"), "claims", cwd=copy)
    assert done.returncode == 1 and "is not finished" in done.stderr
    nb["metadata"]["papermill"]["end_time"] = "2026-01-01T00:00:00"
    (drawn / "claims.ipynb").write_text(json.dumps(nb))
    done = run("tools/ship.py", str(tmp_path / "drawn"), "claims", cwd=copy)
    assert done.returncode == 0, done.stderr
    outputs = [
        c
        for c in json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        if c["cell_type"] == "code"
    ][-1]["outputs"]
    assert [o["data"]["text/plain"] for o in outputs] == [["a new verdict"]] and outputs[0][
        "execution_count"
    ] is None  # cleaned, and no progress bar
    kept = copy / "nbs/experiments/results/claims"
    for name in ("claims.json", "run.json"):
        assert (kept / name).read_text() == '{"new": 1}'
    assert (kept / "claims.csv").read_text() == "new\n1\n"


def test_a_record_stays_where_the_numbers_are_the_same(copy, tmp_path):
    "What was only drawn again was not measured again: the record is of the run that measured."
    kept, drawn = copy / "nbs/experiments/results/claims", tmp_path / "drawn/claims"
    shutil.copytree(kept, drawn)
    nb = json.loads((copy / "nbs/experiments/claims.ipynb").read_text(encoding="utf-8"))
    nb["metadata"]["papermill"] = {"end_time": "2026-01-01T00:00:00"}
    (drawn / "claims.ipynb").write_text(json.dumps(nb))
    before = (kept / "run.json").read_bytes()
    (drawn / "run.json").write_text('{"seconds": 1}')
    for name in ("claims.json", "claims.csv"):
        done = run("tools/ship.py", str(tmp_path / "drawn"), "claims", cwd=copy)
        assert done.returncode == 0, done.stderr
        assert (kept / "run.json").read_bytes() == before
        assert (kept / name).read_bytes() == (drawn / name).read_bytes()
        (drawn / "claims.json").write_text('{"another": "summary"}')
    (drawn / "claims.csv").write_text("new\n1\n")
    done = run("tools/ship.py", str(tmp_path / "drawn"), "claims", cwd=copy)
    assert done.returncode == 0, done.stderr
    assert (kept / "run.json").read_text() == '{"seconds": 1}'
