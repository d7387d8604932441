"""README.md from nbs/index.ipynb, without Quarto.

The notebook is run first, so that its numbers and figures are those of the shipped results. `--check` writes nothing,
and fails where the committed pages say something else than the results do."""

import io
import os
import re
import sys
import tempfile
from base64 import b64decode
from pathlib import Path

import nbformat
import numpy as np
from execnb.nbio import nb2str, read_nb
from nbclient import NotebookClient
from nbconvert import MarkdownExporter
from nbdev.clean import nbdev_clean
from nbdev.processors import FilterDefaults, add_links, exec_show_docs
from PIL import Image

from trainprove_nb.report.executed import private_sockets

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / "nbs"
INDEX = NBS / "index.ipynb"
PICTURE = "images/readme-{}"  # in nbs/, for pictures that are outputs of index.ipynb
FIG_ALT = re.compile(r'#\|\s*fig-alt:\s*"(.*)"')  # what a picture shows, in Quarto's words
KINDS = {"image/svg+xml": ".svg", "image/png": ".png"}


class ReadmeFilter(FilterDefaults):
    "nbdev's own processing, less what depends on more than the notebook."

    def base_procs(self):
        return [p for p in super().base_procs() if p not in (add_links, exec_show_docs)]


def executed():
    "The front page, run on the shipped results."
    nb = nbformat.read(INDEX, 4)
    where = {"metadata": {"path": str(NBS)}}
    os.environ.setdefault("PYTHONWARNINGS", "ignore:IProgress not found")
    with tempfile.TemporaryDirectory() as folder:
        sockets = private_sockets(folder)
        client = NotebookClient(nb, startup_timeout=300, resources=where, config=sockets)
        client.execute()
    for cell in nb.cells:
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
    return nb


def plain(nb):
    "A processed nbdev notebook as one that any nbconvert exporter shows well."
    meta = getattr(nb, "frontmatter_", {})
    nb = nbformat.reads(nb2str(nb), as_version=4)
    nb.metadata["language_info"] = {"name": "python"}
    for cell in nb.cells:
        if cell.cell_type != "code":
            continue
        lines = cell.source.splitlines()
        if alt := next(filter(None, map(FIG_ALT.fullmatch, lines)), None):
            cell.metadata["alt"] = alt[1]
        if any(re.fullmatch(r"#\|\s*echo:\s*false\s*", line) for line in lines):
            cell.metadata["transient"] = {"remove_source": True}
        cell.source = "\n".join(line for line in lines if not line.startswith("#|"))
    nb.cells = [c for c in nb.cells if c.cell_type != "raw"]
    if "title" in meta:
        description = f"\n\n> {meta['description']}" if "description" in meta else ""
        nb.cells.insert(0, nbformat.v4.new_markdown_cell(f"# {meta['title']}{description}"))
    return nb


def take_pictures(nb):
    "Replace pictures among the outputs of `nb` by links; returns them, file name -> bytes."
    found = {}
    for cell in nb.cells:
        for i, out in enumerate(cell.get("outputs", [])):
            kind = next((k for k in KINDS if k in out.get("data", {})), None)
            if kind is None:
                continue
            name, data = PICTURE.format(f"{cell.id}-{i}{KINDS[kind]}"), out.data[kind]
            found[name] = data.encode() if kind == "image/svg+xml" else b64decode(data)
            alt = out.get("metadata", {}).get(kind, {}).get("alt", "")
            out.data = nbformat.from_dict({"text/markdown": f"![{alt}](nbs/{name})"})
    return found


def from_root(link):
    "A link to a file in nbs/ as it reads from the repository's root; other links stay."
    before, target = link.groups()
    return f"{before}nbs/{target}" if (NBS / target).exists() else link.group()


def readme(path):
    "What a front page makes: file -> bytes, README.md and its pictures."
    nb = read_nb(path)
    ReadmeFilter()(nb)
    nb = plain(nb)
    pictures = take_pictures(nb)
    exporter = MarkdownExporter()
    kinds = ["text/markdown", "text/html", "text/plain"]
    exporter.config.NbConvertBase.display_data_priority = kinds
    text, _ = exporter.from_notebook_node(nb)
    text = re.sub(r"<style.*?</style>\n?", "", text, flags=re.S)  # GitHub would show it as text
    text = re.sub(r'(\]\(|\b(?:src|href)=")([^)"#:]+)', from_root, text)
    text = re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
    return {ROOT / "README.md": text.encode(), **{NBS / k: v for k, v in pictures.items()}}


def same(one, other):
    "Whether two files say the same: text to the letter, pictures but for a handful of pixels."
    if not one.startswith(b"\x89PNG"):
        return one == other
    a, b = (np.asarray(Image.open(io.BytesIO(x)).convert("RGB"), float) for x in (one, other))
    return a.shape == b.shape and (np.abs(a - b).max(axis=2) > 32).mean() < 1e-5


def write(nb):
    "Keep the outputs in index.ipynb, and write what follows from them."
    nbformat.write(nb, INDEX)
    nbdev_clean.__wrapped__(str(INDEX))
    files = readme(INDEX)
    for old in NBS.glob(PICTURE.format("*")):
        if old not in files:
            old.unlink()
    for path, data in files.items():
        path.parent.mkdir(exist_ok=True)
        if not path.exists() or not same(path.read_bytes(), data):
            path.write_bytes(data)


def stale(nb):
    "Names of committed files that are not what the front page makes of the results."
    drawn = NBS / "index.drawn.ipynb"
    try:
        nbformat.write(nb, drawn)
        fresh, kept = readme(drawn), readme(INDEX)
    finally:
        drawn.unlink(missing_ok=True)
    there = {p: p.read_bytes() for p in [ROOT / "README.md", *NBS.glob(PICTURE.format("*"))]}
    wrong = [p for p in {**fresh, **there} if not (p in fresh and p in there)]
    wrong += [p for p in fresh if p in there and not same(fresh[p], there[p])]
    wrong += [INDEX for p in fresh if p not in kept or not same(fresh[p], kept[p])]
    return sorted({p.relative_to(ROOT).as_posix() for p in wrong})


def main():
    os.chdir(ROOT)
    nb = executed()
    if "--check" not in sys.argv:
        write(nb)
    elif wrong := stale(nb):
        sys.exit(
            f"{', '.join(wrong)}: not what the results say. Run `make readme`, commit the result."
        )


if __name__ == "__main__":
    main()
