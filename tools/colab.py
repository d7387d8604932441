"""Each notebook opens in Colab: its first cell of code installs the package where it is missing.

Puts that cell into the notebooks that lack it. `--check` writes nothing, and fails where one does."""

import hashlib
import json
import sys
from pathlib import Path

NBS = Path(__file__).resolve().parent.parent / "nbs"
PLACE = "https://colab.research.google.com/github/trainprove/trainprove_nb/blob/main/nbs/"
CELL = """\
#| hide
import sys
from importlib.util import find_spec
from subprocess import check_call

if find_spec("trainprove_nb") is None:  # as in Colab
    place = "git+https://github.com/trainprove/trainprove_nb"
    check_call([sys.executable, "-m", "pip", "install", "-q", place])"""


def has_cell(notebook) -> bool:
    "Whether the first cell of code, but for the name of the module, is the one."
    code = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    first = next((source for source in code if not source.startswith("#| default_exp")), CELL)
    return first == CELL


def add_cell(notebook, name) -> None:
    "Put it after the title, and after the name of the module where there is one."
    cells = notebook["cells"]
    named = [k for k, c in enumerate(cells) if "".join(c["source"]).startswith("#| default_exp")]
    raw = [k for k, c in enumerate(cells) if c["cell_type"] == "raw"]
    cell = {
        "cell_type": "code",
        "execution_count": None,
        "id": hashlib.sha256(name.encode()).hexdigest()[:8],
        "metadata": {},
        "outputs": [],
        "source": CELL.splitlines(keepends=True),
    }
    title = next(k for k, c in enumerate(cells) if c["cell_type"] == "markdown")
    cells.insert(max([title, *named, *raw[:1]]) + 1, cell)


def main() -> None:
    lacking = []
    for path in sorted(NBS.rglob("*.ipynb")):
        notebook = json.loads(path.read_text())
        if not has_cell(notebook):
            lacking.append(str(path.relative_to(NBS)))
            add_cell(notebook, lacking[-1])
            if "--check" not in sys.argv:
                text = json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True)
                path.write_text(text + "\n")
    if "--check" in sys.argv and lacking:
        sys.exit(f"{len(lacking)} notebooks do not open in Colab: run python tools/colab.py")


if __name__ == "__main__":
    main()
