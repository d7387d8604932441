"""What a run found, put where readers see it: `python tools/ship.py figures/mini fig6 claims`, or all without names.

The outputs of the executed notebooks go into nbs/experiments/ and nbs/audit/, their numbers into
nbs/experiments/results/, from where `trainprove figures --redraw` draws all of it again. Where the numbers are the ones
that were there already, the record of the run that made them stays."""

import shutil
import sys
from pathlib import Path

import nbformat
from nbdev.clean import nbdev_clean
from readme import NBS

RESULTS = NBS / "experiments" / "results"


def notebooks():
    "All experiments: name -> notebook."
    return {
        p.stem: p for folder in ("experiments", "audit") for p in (NBS / folder).glob("*.ipynb")
    }


def show(executed, notebook):
    "Put the outputs of an executed notebook into the one that it is of; text may have changed since, code may not."
    run = nbformat.read(executed, 4)
    if not run.metadata.get("papermill", {}).get("end_time"):
        sys.exit(f"{executed} is not finished: wait for its run, or begin it again.")
    ran = {c.id: c for c in run.cells if c.cell_type == "code"}
    nb = nbformat.read(notebook, 4)
    code = [c for c in nb.cells if c.cell_type == "code"]
    for c in code:
        if c.id not in ran or ran[c.id].source != c.source:
            sys.exit(
                f"{executed} ran other code than {notebook.name} has, in cell {c.id}: run it again."
            )
    for c in code:  # progress and warnings are left out
        c.outputs = [o for o in ran[c.id].outputs if o.get("name") != "stderr"]
    nbformat.write(nb, notebook)
    nbdev_clean.__wrapped__(str(notebook))


def keep(drawn, kept, name):
    "Copy tables and numbers; and the record of the run, unless it found what was there."
    kept.mkdir(parents=True, exist_ok=True)
    found = sorted([*drawn.glob(f"{name}*.csv"), drawn / f"{name}.json"])
    found += sorted(drawn.glob(f"{name}_answers.png"))  # what an audited model drew
    there = kept / f"{name}.csv"
    known = there.is_file() and there.read_bytes() == (drawn / f"{name}.csv").read_bytes()
    for p in found if known and (kept / "run.json").is_file() else [*found, drawn / "run.json"]:
        shutil.copyfile(p, kept / p.name)


def main():
    if len(sys.argv) < 2:
        sys.exit("Name the folder of the figures: python tools/ship.py figures/mini [NAME ...]")
    folder, known = Path(sys.argv[1]), notebooks()
    for name in sys.argv[2:] or sorted(known):
        drawn = folder / name
        if not all((drawn / f).is_file() for f in (f"{name}.json", "run.json")):
            sys.exit(f"{drawn} has no results: run trainprove figures {name} first.")
        show(drawn / f"{name}.ipynb", known[name])
        keep(drawn, RESULTS / name, name)
        print(name)


if __name__ == "__main__":
    main()
