"The repository agrees with itself: notebooks, package, README, documentation."

import ast
import json
import re
import subprocess

import pandas as pd
import pytest
from helpers import NBS, NOTEBOOKS, ROOT, run

from trainprove_nb.audit.command import audit


def files(folder):
    "Notebooks and modules below `folder`, as a dict from path to bytes."
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.suffix in (".py", ".ipynb") and ".ipynb_checkpoints" not in p.parts
    }


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
    ), "the first cell is an H1 and a one-line `>` subtitle, or the docs lack the rest of it"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=str)
def test_imports_have_cells_to_themselves(path):
    mixed = []  # but for the cell that every notebook has, which may run anywhere
    for cell in json.loads((ROOT / path).read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] != "code" or re.search(r"^#\|\s*(export|eval:\s*false)", source, re.M):
            continue
        if "# as in Colab" in source:
            continue
        tree = ast.parse(re.sub(r"^[%!].*", "", source, flags=re.M))
        kinds = {isinstance(node, (ast.Import, ast.ImportFrom)) for node in tree.body}
        if len(kinds) == 2:
            mixed.append(cell["id"])
    assert mixed == [], "the docs run every cell with an import, and no other: split these cells"


# README.md, which is made of a notebook and of the shipped results


def readme(copy, *options):
    "Make README.md in a copy of the repository, of the results in that copy."
    return run("tools/readme.py", *options, cwd=copy, PYTHONPATH=str(copy))


def test_readme_is_in_sync():
    done = run("tools/readme.py", "--check")
    assert done.returncode == 0, done.stderr


def less_accurate(results):
    "TrainProVe's accuracy, as if it were another."
    file = results / "trainprove/trainprove.json"
    told = json.loads(file.read_text())
    told["quality"]["TrainProVe"]["accuracy"] = [0.123, 0.1, 0.2]
    file.write_text(json.dumps(told))
    return "it is right in 0.12 (0.10–0.20) of the cases"


def less_confident(results):
    "One suspect's conf in Figure 6, as if it were another; the figure shows it, and no sentence."
    table = pd.read_csv(results / "fig6/fig6.csv")
    suspects = table.index[(table.strategy == "detection") & (table.kind == "infringing")]
    table.loc[suspects[-1], "conf"] = 0.0
    table.to_csv(results / "fig6/fig6.csv", index=False)


def test_a_page_that_says_something_else_is_noticed_and_written_anew(copy):
    page, results = copy / "README.md", copy / "nbs/experiments/results"
    was = {p: p.read_bytes() for p in copy.glob("nbs/images/*")}
    with page.open("a") as f:
        f.write("One more line.\n")
    less_confident(results)
    done = readme(copy, "--check")
    assert done.returncode == 1 and "Run `make readme`" in done.stderr, done.stderr
    named = done.stderr.split(": not what the results say")[0].split(", ")
    assert "README.md" in named and set(named) & {p.relative_to(copy).as_posix() for p in was}
    sentence = less_accurate(results)
    done = readme(copy)
    assert done.returncode == 0, done.stderr
    assert was != {p: p.read_bytes() for p in copy.glob("nbs/images/*")}
    assert sentence in page.read_text() and "One more line." not in page.read_text()


def test_readme_links_lead_somewhere():
    text = re.sub(r"```.*?```", "", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.S)
    links = re.findall(r'\]\(([^)#:]+)[)#]|\b(?:src|href)="([^"#:]+)["#]', text)
    assert [a or b for a, b in links if not (ROOT / (a or b)).exists()] == []
    assert "data:image/" not in text  # GitHub shows pictures that are files, and no others


# Settings and pages


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


def test_what_commands_leave_is_no_part_of_the_checkout():
    "Neither ruff nor git looks at it: `make test` passes after `make audit` and `make figures`."
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    (demo,) = (p.default for p in audit.commands["demo"].params if p.name == "folder")
    for folder in (demo, "lab", "figures", "_docs"):
        ignored = ["git", "check-ignore", "-q", f"{folder}/some/report.ipynb"]
        assert subprocess.run(ignored, cwd=ROOT).returncode == 0, folder


def without_words(cell):
    "Pictures among a cell's outputs that have no text to stand for them."
    if re.search(r'^#\| fig-alt: "\S', "".join(cell["source"]), re.M):
        return []
    pictures = [o for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
    return [o for o in pictures if not o["metadata"].get("image/png", {}).get("alt")]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=str)
def test_every_picture_says_what_it_shows(path):
    cells = json.loads((ROOT / path).read_text(encoding="utf-8"))["cells"]
    assert [c["id"] for c in cells if without_words(c)] == [], "give it alt=... or #| fig-alt"


def test_a_picture_without_words_is_noticed():
    picture = {"data": {"image/png": ""}, "metadata": {}}
    assert without_words({"source": ["sheet(x)"], "outputs": [picture]})
    assert not without_words(
        {"source": ['#| fig-alt: "A fox."\n', "sheet(x)"], "outputs": [picture]}
    )


def test_make_redraws_from_shipped_results_when_it_is_asked_to():
    def told(*words):
        asked = ["make", "-n", "-o", "venv", "figures", "FIGURE=release", *words]
        return subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert "--redraw" in told("REDRAW=yes") and "--redraw" not in told()
