"The repository agrees with itself: notebooks, package, README, documentation."

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / "nbs"
NOTEBOOKS = sorted(
    p.relative_to(ROOT)
    for p in NBS.rglob("*.ipynb")
    if not re.search(r"/[._]", p.relative_to(ROOT).as_posix())
)


def run(*args, cwd=ROOT):
    "Run Python with `args`; returns the finished process with its output as text."
    return subprocess.run([sys.executable, *args], cwd=cwd, text=True, capture_output=True)


def files(folder):
    "Notebooks and modules below `folder`, as a dict from path to bytes."
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.suffix in (".py", ".ipynb") and ".ipynb_checkpoints" not in p.parts
    }


@pytest.fixture
def copy(tmp_path):
    "A copy of what nbdev and the tools work on, free to be changed."
    root = tmp_path / "copy"
    skip = shutil.ignore_patterns(
        "weights", "__pycache__", ".ipynb_checkpoints", "nbdev.yml", "sidebar.yml"
    )
    for name in ("nbs", "trainprove_nb", "tools"):
        shutil.copytree(ROOT / name, root / name, symlinks=True, ignore=skip)
    for name in ("settings.ini", "_quarto.yml", "README.md"):
        shutil.copy2(ROOT / name, root)
    return root


def differ(was, now):
    "Names whose bytes differ, or that only one of two dicts has."
    return sorted(name for name in was | now if was.get(name) != now.get(name))


def test_notebooks_are_clean(copy):
    done = run("-c", "from nbdev.clean import nbdev_clean; nbdev_clean.__wrapped__()", cwd=copy)
    assert done.returncode == 0, done.stderr
    assert differ(files(NBS), files(copy / "nbs")) == [], "run nbdev_clean"


def test_package_is_the_export_of_the_notebooks(copy):
    package = copy / "trainprove_nb"
    for path in package.rglob("*.py"):
        if path.name != "__init__.py":
            path.unlink()  # so that a module without a notebook shows
    done = run(
        "-c", "from nbdev.doclinks import nbdev_export; nbdev_export.__wrapped__()", cwd=copy
    )
    assert done.returncode == 0, done.stderr
    assert differ(files(ROOT / "trainprove_nb"), files(package)) == [], "run nbdev_export"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=str)
def test_notebook_opens_with_title_and_subtitle(path):
    cells = [
        c
        for c in json.loads((ROOT / path).read_text(encoding="utf-8"))["cells"]
        if c["cell_type"] != "raw"
    ]
    first = "".join(cells[0]["source"]).strip()
    assert cells[0]["cell_type"] == "markdown" and re.fullmatch(
        r"# \S.*\n+> \S.*(\n+- [\w-]+: .+)*", first
    ), (
        "the first cell is an H1 and a one-line `>` subtitle, nothing else: nbdev drops the rest of it from the docs"
    )


@pytest.mark.parametrize("path", NOTEBOOKS, ids=str)
def test_imports_have_cells_to_themselves(path):
    mixed = []
    for cell in json.loads((ROOT / path).read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] != "code" or re.search(r"^#\|\s*(export|eval:\s*false)", source, re.M):
            continue
        tree = ast.parse(re.sub(r"^[%!].*", "", source, flags=re.M))
        kinds = {isinstance(node, (ast.Import, ast.ImportFrom)) for node in tree.body}
        if len(kinds) == 2:
            mixed.append(cell["id"])
    assert mixed == [], (
        "nbdev runs every cell with an import when it builds the docs, and no other: split these cells"
    )


def test_readme_is_in_sync():
    done = run("tools/readme.py", "--check")
    assert done.returncode == 0, done.stderr


def test_readme_out_of_sync_is_noticed(copy):
    with (copy / "README.md").open("a") as f:
        f.write("One more line.\n")
    done = run("tools/readme.py", "--check", cwd=copy)
    assert done.returncode == 1 and "make readme" in done.stderr
    assert run("tools/readme.py", cwd=copy).returncode == 0
    assert (copy / "README.md").read_bytes() == (ROOT / "README.md").read_bytes()


def test_readme_links_lead_somewhere():
    text = re.sub(r"```.*?```", "", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.S)
    links = re.findall(r'\]\(([^)#:]+)[)#]|\b(?:src|href)="([^"#:]+)["#]', text)
    assert [a or b for a, b in links if not (ROOT / (a or b)).exists()] == []


def test_quarto_settings(tmp_path):
    check = "-m", "check_jsonschema", "--schemafile", str(ROOT / "tests/quarto.schema.json")
    done = run(*check, "_quarto.yml")
    assert done.returncode == 0, done.stdout
    assert (NBS / "_quarto.yml").resolve() == ROOT / "_quarto.yml"
    for right, typo in [
        ("website:", "websit:"),
        ("toc: true", "tock: true"),
        ("style: floating", "style: floatin"),
    ]:
        text = (ROOT / "_quarto.yml").read_text()
        assert right in text
        (tmp_path / "typo.yml").write_text(text.replace(right, typo))
        assert run(*check, str(tmp_path / "typo.yml")).returncode == 1, typo


def test_docs_pages_build(copy, tmp_path):
    out = tmp_path / "pages"
    done = run("tools/docs.py", str(out), cwd=copy)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == str(out)
    assert len(list(out.rglob("*.html"))) == len(NOTEBOOKS)
    for path in NOTEBOOKS:
        folder = out / path.relative_to("nbs").parent
        html = (folder / re.sub(r"^\d+[a-z0-9]*_", "", f"{path.stem}.html".lower())).read_text(
            encoding="utf-8"
        )
        assert html.count("<h1") == 1, f"{path}: more than its title is an H1"
        linked = [
            s
            for s in re.findall(r'\b(?:src|href)="([^"#:]+)["#]', html)
            if not (folder / s).exists()
        ]
        assert linked == [], path


def test_claims_page_is_what_the_shipped_results_say(tmp_path):
    results = NBS / "experiments" / "results"
    done = run(
        "-m",
        "papermill",
        "nbs/experiments/claims.ipynb",
        str(tmp_path / "claims.ipynb"),
        "-p",
        "results",
        str(results),
        "-p",
        "out",
        str(tmp_path / "claims"),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    pd.testing.assert_frame_equal(
        *(
            pd.read_csv(folder / "claims.csv")
            for folder in (tmp_path / "claims", results / "claims")
        )
    )  # up to rounding: processors differ in the last digit
    (shown,), (drawn,) = (
        [
            "".join(o["data"]["text/html"])
            for c in json.loads(path.read_text(encoding="utf-8"))["cells"]
            for o in c.get("outputs", [])
            if "text/html" in o.get("data", {})
        ]
        for path in (NBS / "experiments/claims.ipynb", tmp_path / "claims.ipynb")
    )
    number = re.compile(r"-?\d*\.\d+")
    assert number.sub("#", shown) == number.sub("#", drawn), (
        "python tools/ship.py figures/mini claims"
    )
    assert [float(x) for x in number.findall(shown)] == pytest.approx(
        [float(x) for x in number.findall(drawn)], abs=0.011
    )


def test_outputs_are_shipped_unless_they_are_of_other_code(copy, tmp_path):
    notebook, drawn = copy / "nbs/experiments/claims.ipynb", tmp_path / "drawn/claims"
    drawn.mkdir(parents=True)
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
    (drawn / "claims.ipynb").write_text(json.dumps(nb))
    done = run("tools/ship.py", str(tmp_path / "drawn"), "claims", cwd=copy)
    assert (
        done.returncode == 1
        and "ran other code" in done.stderr
        and last["id"] in done.stderr
        and notebook.read_bytes() == before
    )
    last["source"] = source
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
    assert (copy / "nbs/experiments/results/claims/claims.json").read_text() == '{"new": 1}'


def test_no_machine_paths():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(
        ["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
    ).stdout
    paths = {ROOT / name for name in listed.decode().split("\0") if name}
    home = re.compile(rb"(?<![\w.])/(?:work|root|home/\w+|Users/\w+)/|/tmp/[a-z]")
    assert [
        str(p)
        for p in sorted(paths)
        if p.is_file() and p.suffix not in (".safetensors", ".png") and home.search(p.read_bytes())
    ] == []
