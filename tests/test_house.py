"The architecture: chapters in their order, modules that do nothing but define, and a package that stands alone."

import ast
import json
import re
import zipfile
from configparser import ConfigParser
from pathlib import Path

import nbformat
import pytest
import yaml
from helpers import NBS, NOTEBOOKS, ROOT, contents, results, run

PACKAGE = ROOT / "trainprove_nb"
MODULES = {  # as in "data.pairs" -> its file
    ".".join(p.relative_to(PACKAGE).with_suffix("").parts): p
    for p in sorted(PACKAGE.rglob("*.py"))
    if p.name not in ("__init__.py", "_modidx.py")
}

# The chapters


def exported(path):
    "The module that a notebook is exported to, or None."
    source = "\n".join(c.source for c in nbformat.read(path, 4).cells)
    name = re.search(r"^#\| default_exp (\S+)", source, re.M)
    return name and name[1]


def imported(name, source, known):
    "The modules of the package that a module's source imports, also within functions."
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (
                a.name.partition(".")[2] for a in node.names if a.name.startswith("trainprove_nb.")
            )
        elif isinstance(node, ast.ImportFrom):
            base = (node.module or "").split(".") if node.module else []
            if node.level:
                base = ["trainprove_nb", *name.split(".")[: -node.level], *base]
            if base[0] == "trainprove_nb":
                within = [".".join([*base[1:], a.name]) for a in node.names]
                rooms = within[0] in known or len(base) == 1  # or names of one room
                yield from within if rooms else [".".join(base[1:])]


def out_of_order(order, sources):
    "Imports of modules that do not stand before the importing one: (importing, imported)."
    before = {name: set(order[:k]) for k, name in enumerate(order)}
    return [
        (name, other)
        for name, source in sources.items()
        for other in imported(name, source, sources)
        if other not in before.get(name, set())
    ]


@pytest.mark.parametrize(
    "line, found",
    [
        ("from ..b.two import thing", "b.two"),
        ("from ..b import two as other", "b.two"),
        ("from trainprove_nb.b.two import thing", "b.two"),
        ("import trainprove_nb.b.two as other", "b.two"),
        ("def late():\n    from ..b.two import thing", "b.two"),
        ("from .one import thing", "a.one"),
        ("from . import one", "a.one"),
        ("from trainprove_nb import b", "b"),
        ("from .zero import thing", None),
        ("from . import zero", None),
        ("import torch\nfrom pathlib import Path\nfrom b.two import thing", None),
    ],
)
def test_an_import_of_a_later_room_is_noticed(line, found):
    order = ["a.zero", "a.one", "b.two"]
    sources = {"a.zero": "", "a.one": line, "b.two": "from ..a.one import thing"}
    assert out_of_order(order, sources) == ([("a.one", found)] if found else [])


def test_rooms_import_only_from_rooms_before_them():
    order = [exported(NBS / path) for path in contents()]
    order = [name for name in order if name]
    assert order[-1] == "cli"
    sources = {name: path.read_text() for name, path in MODULES.items()}
    assert out_of_order(order, sources) == []


def test_every_notebook_has_one_place_in_the_sidebar():
    listed = contents()
    there = [p.relative_to("nbs").as_posix() for p in NOTEBOOKS]
    there = [p for p in there if not p.endswith(".drawn.ipynb")]  # while README.md is being made
    assert sorted(listed) == sorted(there)


def test_no_two_pages_of_a_chapter_have_one_name_in_the_sidebar():
    "It shows titles up to their colon."
    first = re.compile(r"^(?:# |title: )([^:\n]+)", re.M)
    shown = [(p.parent.name, first.search(prose(p))[1].strip()) for p in NOTEBOOKS]
    assert [name for name in set(shown) if shown.count(name) > 1] == []


def prose(path):
    "The words of a notebook, its first lines among them."
    cells = json.loads((ROOT / path).read_text("utf-8"))["cells"]
    return "\n".join("".join(c["source"]) for c in cells if c["cell_type"] != "code")


def test_package_and_notebooks_have_the_same_rooms():
    rooms = {p: exported(ROOT / p) for p in NOTEBOOKS}
    rooms = {p: name for p, name in rooms.items() if name}
    assert sorted(rooms.values()) == sorted(MODULES)
    misnamed = [
        str(p)
        for p, name in rooms.items()
        if p != Path("nbs", *name.split(".")).with_suffix(".ipynb")
    ]
    assert misnamed == []
    folders = {p.parent for p in MODULES.values()}
    assert [str(f) for f in folders if not (f / "__init__.py").is_file()] == []


# Modules only define

IMPORTS = """
import ast, importlib, json, os, sys, warnings
from pathlib import Path

package, names, third_party, report = *map(json.loads, sys.argv[1:4]), sys.argv[4]
warnings.simplefilter("ignore")
for line in third_party:
    exec(line, {})
quiet = os.open(report + ".printed", os.O_WRONLY | os.O_CREAT)
files = lambda: sorted(str(p) for f in (Path.cwd(), Path.home()) for p in f.rglob("*"))
was = dict(os.environ), files()
os.dup2(quiet, 1), os.dup2(quiet, 2)
warned = []
warnings.showwarning = lambda message, *_, **__: warned.append(str(message))
warnings.simplefilter("always")
for name in names:
    importlib.import_module(f"{package}.{name}")
sys.stdout.flush(), sys.stderr.flush()
now = dict(os.environ), files()
told = {
    "environment": sorted(k for k in was[0] | now[0] if was[0].get(k) != now[0].get(k)),
    "files": sorted(set(now[1]) - set(was[1])),
    "printed": Path(report + ".printed").read_text(),
    "warnings": warned,
}
Path(report).write_text(json.dumps(told))
"""
NOTHING = {"environment": [], "files": [], "printed": "", "warnings": []}


def third_party(sources):
    "Statements that import from elsewhere, from the top of some modules: what they do is not ours."
    found = {}
    for source in sources:
        for node in ast.parse(source).body:
            if isinstance(node, ast.ImportFrom) and (
                node.level or node.module.startswith("trainprove_nb")
            ):
                continue
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                found[ast.unparse(node)] = True
    return list(found)


def side_effects(folder, package, names, sources, tmp_path):
    "What happens besides definitions while the modules of a package in a folder are imported."
    home, report = tmp_path / "home", tmp_path / "report.json"
    home.mkdir()
    told = [json.dumps(x) for x in (package, names, third_party(sources))]
    places = {"HOME": str(home), "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    done = run("-c", IMPORTS, *told, str(report), cwd=home, **places)
    printed = Path(f"{report}.printed")
    assert done.returncode == 0, done.stderr + (printed.read_text() if printed.exists() else "")
    return json.loads(report.read_text())


@pytest.mark.parametrize(
    "line, kind",
    [
        ("import os\nos.environ['HF_HUB_OFFLINE'] = '1'", "environment"),
        ("import os\nos.environ.pop('HOME_OF_TESTS')", "environment"),
        ("open('made.txt', 'w').close()", "files"),
        ("from pathlib import Path\n(Path.home() / '.cache').mkdir()", "files"),
        ("print('ready')", "printed"),
        ("import os\nos.system('echo ready >&2')", "printed"),
        ("import warnings\nwarnings.warn('old')", "warnings"),
        ("def late():\n    print('ready')", None),
    ],
)
def test_a_side_effect_is_noticed(tmp_path, monkeypatch, line, kind):
    monkeypatch.setenv("HOME_OF_TESTS", "here")
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy/room.py").write_text(line)
    told = side_effects(tmp_path, "toy", ["room"], [line], tmp_path)
    assert [k for k in told if told[k]] == ([kind] if kind else [])


def test_importing_a_module_only_defines(tmp_path):
    sources = [p.read_text() for p in MODULES.values()]
    told = side_effects(ROOT, "trainprove_nb", list(MODULES), sources, tmp_path)
    assert told == NOTHING


def careless(source):
    "Lines of a source with a mutable default, or an `except` that catches all."
    mutable = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            for d in (*node.args.defaults, *filter(None, node.args.kw_defaults)):
                made = isinstance(d, ast.Call) and getattr(d.func, "id", "") in (
                    "list",
                    "dict",
                    "set",
                )
                if isinstance(d, mutable) or made:
                    yield d.lineno
        elif isinstance(node, ast.ExceptHandler) and node.type is None:
            yield node.lineno


@pytest.mark.parametrize(
    "source, lines",
    [
        ("def f(x=[]): pass", [1]),
        ("def f(*, x={}): pass", [1]),
        ("f = lambda x=dict(): x", [1]),
        ("try:\n    pass\nexcept:\n    pass", [3]),
        (
            "def f(x=(), y=None, z=3):\n    try:\n        pass\n    except OSError:\n        pass",
            [],
        ),
    ],
)
def test_carelessness_is_noticed(source, lines):
    assert list(careless(source)) == lines


def test_no_mutable_defaults_and_no_bare_except():
    found = {name: list(careless(path.read_text())) for name, path in MODULES.items()}
    assert {name: lines for name, lines in found.items() if lines} == {}


# Short enough to be read


def body_lines(function):
    "Lines of a function without its signature and docstring."
    inner = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return inner[-1].end_lineno - inner[0].lineno + 1 if inner else 0


def too_large(source):
    "What is too large in a cell that defines."
    tree, found = ast.parse(re.sub(r"^\s*[%!].*", "", source, flags=re.M)), []
    definitions = [n for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
    code = [
        line for line in source.splitlines() if line.strip() and not line.strip().startswith("#")
    ]
    if len(definitions) > 1:
        found.append(f"{len(definitions)} definitions")
    if definitions and len(code) > 60:
        found.append(f"{len(code)} lines")
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and body_lines(node) > 40:
            found.append(f"{node.name}: {body_lines(node)} lines")
    return found + [f"{len(line)} characters" for line in source.splitlines() if len(line) > 120]


def lines(n, line="    x = 1"):
    return "\n".join([line] * n)


@pytest.mark.parametrize(
    "source, found",
    [
        (f"def f():\n{lines(41)}", ["f: 41 lines"]),
        (f'def f():\n    """One.\n\n    Two."""\n{lines(40)}', []),
        (f"class A:\n    def f():\n{lines(41, '        x = 1')}", ["f: 41 lines"]),
        ("def f(): pass\ndef g(): pass", ["2 definitions"]),
        (f"class A:\n{lines(60)}", ["61 lines"]),
        (f"class A:\n{lines(59)}\n\n# not counted", []),
        (f"x = '{'a' * 116}'", ["122 characters"]),
    ],
)
def test_what_is_too_large_is_noticed(source, found):
    assert too_large(source) == found


@pytest.mark.parametrize("path", [p for p in NOTEBOOKS if exported(ROOT / p)], ids=str)
def test_exported_cells_are_short(path):
    cells = nbformat.read(ROOT / path, 4).cells
    code = {c.id: c.source for c in cells if c.cell_type == "code"}
    code = {i: s for i, s in code.items() if re.search(r"^#\|\s*exports?\b", s, re.M)}
    assert {i: too_large(s) for i, s in code.items() if too_large(s)} == {}


@pytest.mark.parametrize("name", MODULES)
def test_modules_have_short_lines(name):
    text = MODULES[name].read_text().partition("\n# %% ")[2]  # without title
    text = re.sub(r"^__all__ = \[.*?\]$", "", text, flags=re.M | re.S)  # nbdev's own
    assert [line for line in text.splitlines() if len(line) > 120] == []


# The package from its wheel


def test_wheel_holds_the_package_and_its_notebooks_and_nothing_else(installed):
    names = set(zipfile.ZipFile(installed.wheel).namelist())
    names = {n for n in names if ".dist-info/" not in n}
    package = {
        p.relative_to(ROOT).as_posix()
        for p in PACKAGE.rglob("*")
        if p.is_file() and "__pycache__" not in p.parts
    }
    notebooks = {
        p.relative_to(NBS).as_posix()
        for chapter in ("experiments", "audit")
        for p in (NBS / chapter).rglob("*")
        if p.is_file() and ".ipynb_checkpoints" not in p.parts
    }
    assert names == package | {f"trainprove_nb/notebooks/{n}" for n in notebooks}


def test_nothing_of_the_checkout_can_be_imported(installed, tmp_path):
    "Else the checks below would prove nothing: by a program, and by a notebook's kernel."
    tell = "import trainprove_nb.report.results as room; print(room.__file__)"
    assert installed.run("-c", tell, cwd=tmp_path, there=False).returncode == 1
    found = installed.run("-c", tell, cwd=tmp_path)
    expected = installed.folder / "trainprove_nb/report/results.py"
    assert (found.stdout.strip(), found.stderr) == (str(expected), "")
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(tell)])
    nbformat.write(nb, tmp_path / "tell.ipynb")
    kernel = ["-k", "python3", "tell.ipynb", "told.ipynb"]
    done = installed.run("-m", "papermill", *kernel, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (cell,) = nbformat.read(tmp_path / "told.ipynb", 4).cells
    assert cell.outputs[0].text.strip() == str(expected)


def test_every_notebook_installs_the_package_where_it_is_missing():
    assert run("tools/colab.py", "--check").returncode == 0
    assert [p for p in NOTEBOOKS if json.loads((ROOT / p).read_text())["nbformat"] != 4] == []


IN_COLAB = """
import importlib.util, json, subprocess, sys

found, asked = importlib.util.find_spec, []
subprocess.check_call = asked.append
cells = json.load(open(sys.argv[1]))["cells"]
code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
code = [c for c in code if not c.startswith("#| default_exp")]
importlib.util.find_spec = lambda name: None
exec(code[0], {})
assert asked[0][1:4] == ["-m", "pip", "install"] and "trainprove_nb" in asked[0][-1], asked
importlib.util.find_spec, space = found, {}
for cell in code:
    exec(cell, space)
assert len(asked) == 1  # where the package is there, nothing is installed
"""


@pytest.mark.parametrize("page", ["report/ranges", "evidence/log_test", "evidence/exercises"])
def test_a_page_runs_from_the_wheel_in_an_empty_folder(installed, tmp_path, page):
    "As in Colab: the notebook alone, and what the wheel brings."
    (tmp_path / "colab.py").write_text(IN_COLAB)
    (tmp_path / "page.ipynb").write_bytes((NBS / f"{page}.ipynb").read_bytes())
    done = installed.run("colab.py", "page.ipynb", cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_installed_package_draws_the_claims_again(installed, tmp_path):
    installed.trainprove("figures", "claims", "--redraw", cwd=tmp_path)
    drawn, shipped = results(tmp_path, "claims"), NBS / "experiments/results/claims"
    assert (drawn / "claims.csv").read_bytes() == (shipped / "claims.csv").read_bytes()
    assert (drawn / "claims.html").is_file()
    assert [p.name for p in tmp_path.iterdir()] == ["figures"]  # no lab: no model was touched


def test_installed_package_draws_figure_6(elsewhere):
    drawn = results(elsewhere, "fig6")
    assert {"fig6.png", "fig6.csv", "fig6.html"} <= {p.name for p in drawn.iterdir()}
    parameters = json.loads((drawn / "fig6.json").read_text())["parameters"]
    assert parameters["sources"] == ["mini-v1-avatars"]
    record = json.loads((drawn / "run.json").read_text())
    assert record["commit"] is None  # no checkout


@pytest.mark.parametrize("name, told", [("audit_generator", "index"), ("audit_classifier", "p")])
def test_installed_package_gives_a_verdict(elsewhere, name, told):
    folder = results(elsewhere, name)
    assert 0 < json.loads((folder / f"{name}.json").read_text())["verdict"][told] <= 1
    assert str(ROOT) not in (folder / f"{name}.ipynb").read_text()


# What GitHub reads


@pytest.mark.parametrize(
    "schema, pattern",
    [
        ("github-workflows", ".github/workflows/*.yaml"),
        ("dependabot", ".github/dependabot.yml"),
        ("github-issue-config", ".github/ISSUE_TEMPLATE/config.yml"),
        ("github-issue-forms", ".github/ISSUE_TEMPLATE/[!c]*.yml"),
        ("citation-file-format", "CITATION.cff"),
    ],
)
def test_github_understands_its_files(schema, pattern, tmp_path):
    files = sorted(ROOT.glob(pattern))
    check = "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}"
    done = run(*check, *map(str, files))
    assert files and done.returncode == 0, done.stdout
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("nonsense: [1]\n")
    assert run(*check, str(wrong)).returncode == 1


def test_versions_agree():
    settings = ConfigParser()
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    version = settings["DEFAULT"]["version"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    assert f'__version__ = "{version}"' in (PACKAGE / "__init__.py").read_text()
