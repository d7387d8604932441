"""What a run found, put where readers see it: `python tools/ship.py figures/mini fig6 claims`, or all without names.

The outputs of the executed notebooks go into nbs/experiments/, their numbers into nbs/experiments/results/, from where
`trainprove figures claims -s results=nbs/experiments/results` draws the claims again."""

import shutil
import sys
from pathlib import Path

import nbformat
from nbdev.clean import nbdev_clean
from readme import NBS

EXPERIMENTS = NBS / "experiments"
RESULTS = EXPERIMENTS / "results"


def show(executed, notebook):
    "Put the outputs of an executed notebook into the one that it is of; text may have changed since, code may not."
    ran = {c.id: c for c in nbformat.read(executed, 4).cells if c.cell_type == "code"}
    nb = nbformat.read(notebook, 4)
    code = [c for c in nb.cells if c.cell_type == "code"]
    for c in code:
        if c.id not in ran or ran[c.id].source != c.source:
            sys.exit(
                f"{executed} ran other code than {notebook.name} has, in cell {c.id}: run it again."
            )
    for c in code:
        c.outputs = [
            o for o in ran[c.id].outputs if o.get("name") != "stderr"
        ]  # progress and warnings
    nbformat.write(nb, notebook)
    nbdev_clean.__wrapped__(str(notebook))


def main():
    if len(sys.argv) < 2:
        sys.exit("Name the folder of the figures: python tools/ship.py figures/mini [NAME ...]")
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    for name in names or sorted(p.stem for p in EXPERIMENTS.glob("*.ipynb")):
        drawn, kept = folder / name, RESULTS / name
        files = [
            p
            for p in (drawn / f"{name}.csv", drawn / f"{name}.json", drawn / "run.json")
            if p.is_file()
        ]
        if len(files) < 2:
            sys.exit(f"{drawn} has no results: run trainprove figures {name} first.")
        show(drawn / f"{name}.ipynb", EXPERIMENTS / f"{name}.ipynb")
        kept.mkdir(parents=True, exist_ok=True)
        for p in files:
            shutil.copyfile(p, kept / p.name)
        print(name)


if __name__ == "__main__":
    main()
