"The documentation as plain HTML pages, without Quarto: `python tools/docs.py FOLDER`."

import os
import re
import shutil
import sys
from html import escape
from pathlib import Path

import yaml
from execnb.nbio import read_nb
from nbconvert import HTMLExporter
from nbdev.quarto import nbdev_sidebar, proc_nbs, refresh_quarto_yml
from readme import ROOT, plain

LINK = re.compile(
    r'href="((?:[^":/]+/)*)(?:\d+[a-zA-Z0-9]*_)?([^":/]+)\.ipynb'
)  # as nbdev names pages: no number
EXPORTER = HTMLExporter(exclude_input_prompt=True, exclude_output_prompt=True)
QUARTO = re.compile(
    r'\{target="_blank"[^}]*\}'
)  # attributes that nbdev gives its links to the source


def page(path):
    "One processed notebook as a file name, a title and HTML."
    nb = read_nb(path)
    raw = next((c.source for c in nb.cells if c.cell_type == "raw"), "")
    nb.frontmatter_ = front = next(yaml.safe_load_all(raw), None) or {}
    title = front.get("title", path.stem)
    html, _ = EXPORTER.from_notebook_node(plain(nb), {"metadata": {"name": title}})
    return (
        front.get("output-file", f"{path.stem}.html"),
        title,
        QUARTO.sub("", LINK.sub(r'href="\1\2.html', html)),
    )


def build(out):
    "Write all pages, and the pictures they use, into the folder `out`."
    refresh_quarto_yml()
    nbdev_sidebar.__wrapped__()
    processed = proc_nbs(force=True, n_workers=1)  # each worker would import torch again
    pages = {}
    for path in sorted(
        (p for p in processed.rglob("*") if p.is_file()), key=lambda p: (p.stem != "index", p)
    ):
        here = path.relative_to(processed).parent
        (out / here).mkdir(parents=True, exist_ok=True)
        if path.suffix == ".ipynb":
            name, *rest = page(path)
            pages[here / name] = rest
        elif path.suffix != ".yml":
            shutil.copy2(path, out / here)  # the .yml are Quarto's
    for name, (_, html) in pages.items():
        links = (
            f'<a href="{Path(os.path.relpath(other, name.parent)).as_posix()}">{escape(title)}</a>'
            for other, (title, _) in pages.items()
        )
        (out / name).write_text(
            html.replace("<main>", f"<main>\n<nav>{' · '.join(links)}</nav>", 1), encoding="utf-8"
        )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("Name the folder for the pages: python tools/docs.py FOLDER")
    out = Path(sys.argv[1]).resolve()
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))  # the notebooks import the package beside them
    build(out)
    print(out)
