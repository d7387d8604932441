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
from nbdev.quarto import proc_nbs, refresh_quarto_yml
from readme import NBS, ROOT, plain

LINK = re.compile(r'href="((?:[^":/]+/)*)([^":/]+)\.ipynb')
QUARTO = re.compile(
    r'\{target="_blank"[^}]*\}'
)  # attributes that nbdev gives its links to the source
# The template that gives pictures the text that stands for them
EXPORTER = HTMLExporter(
    template_name="classic", exclude_input_prompt=True, exclude_output_prompt=True
)


def page(path):
    "One processed notebook as a file name, a title and HTML."
    nb = read_nb(path)
    raw = next((c.source for c in nb.cells if c.cell_type == "raw"), "")
    nb.frontmatter_ = front = next(yaml.safe_load_all(raw), None) or {}
    title = front.get("title", path.stem)
    html, _ = EXPORTER.from_notebook_node(plain(nb), {"metadata": {"name": title}})
    html = QUARTO.sub("", LINK.sub(r'href="\1\2.html', html))
    return front.get("output-file", f"{path.stem}.html"), title, html


def chapters():
    "The book's order, from nbs/sidebar.yml: (chapter, its pages)."
    contents = yaml.safe_load((NBS / "sidebar.yml").read_text())["website"]["sidebar"]["contents"]
    for entry in contents:
        if isinstance(entry, dict):
            yield entry["section"].split(":")[0], entry["contents"]
        else:
            yield "", [entry]


def navigation(here, titles):
    "Links to all pages as a page at `here` shows them, a line a chapter."
    lines = []
    for chapter, paths in chapters():
        names = [Path(p).with_suffix(".html") for p in paths]
        links = [
            f'<a href="{Path(os.path.relpath(n, here.parent)).as_posix()}">{escape(titles[n].split(":")[0])}</a>'
            for n in names
        ]
        lines.append(f"<div><b>{escape(chapter)}</b> {' · '.join(links)}</div>")
    return f"<nav>{''.join(lines)}</nav>"


def build(out):
    "Write all pages, and the pictures they use, into the folder `out`."
    refresh_quarto_yml()
    processed = proc_nbs(force=True, n_workers=1)  # each worker would import torch again
    titles, pages = {}, {}
    for path in sorted(p for p in processed.rglob("*") if p.is_file()):
        here = path.relative_to(processed).parent
        (out / here).mkdir(parents=True, exist_ok=True)
        if path.suffix == ".ipynb":
            name, titles[here / path.with_suffix(".html").name], html = page(path)
            pages[here / name] = html
        elif path.suffix != ".yml":  # the .yml are Quarto's
            shutil.copy2(path, out / here)
    for name, html in pages.items():
        body = re.sub(r"(<body[^>]*>)", rf"\1\n{navigation(name, titles)}", html, count=1)
        (out / name).write_text(body, encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("Name the folder for the pages: python tools/docs.py FOLDER")
    out = Path(sys.argv[1]).resolve()
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))  # the notebooks import the package beside them
    build(out)
    print(out)
