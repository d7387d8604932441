"README.md from nbs/index.ipynb, without Quarto. `--check` writes nothing and fails if it is out of date."

import os
import re
import sys
from base64 import b64decode
from pathlib import Path

import nbformat
from execnb.nbio import nb2str, read_nb
from nbconvert import MarkdownExporter
from nbdev.processors import FilterDefaults, add_links, exec_show_docs

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / "nbs"
PICTURE = "images/readme-{}"  # in nbs/, for pictures that are outputs of index.ipynb
KINDS = {"image/svg+xml": ".svg", "image/png": ".png"}


class ReadmeFilter(FilterDefaults):
    "nbdev's own processing, less what depends on more than the notebook."

    def base_procs(self):
        return [p for p in super().base_procs() if p not in (add_links, exec_show_docs)]


def plain(nb):
    "A processed nbdev notebook as one that any nbconvert exporter shows well."
    meta = getattr(nb, "frontmatter_", {})
    nb = nbformat.reads(nb2str(nb), as_version=4)
    nb.metadata["language_info"] = {"name": "python"}
    for cell in nb.cells:
        if cell.cell_type != "code":
            continue
        lines = cell.source.splitlines()
        if any(re.fullmatch(r"#\|\s*echo:\s*false\s*", l) for l in lines):
            cell.metadata["transient"] = {"remove_source": True}
        cell.source = "\n".join(l for l in lines if not l.startswith("#|"))
    nb.cells = [c for c in nb.cells if c.cell_type != "raw"]
    if "title" in meta:
        head = f"# {meta['title']}" + (
            f"\n\n> {meta['description']}" if "description" in meta else ""
        )
        nb.cells.insert(0, nbformat.v4.new_markdown_cell(head))
    return nb


def take_pictures(nb):
    "Replace pictures among the outputs of `nb` by links; returns them as a dict from file name to bytes."
    found = {}
    for cell in nb.cells:
        for i, out in enumerate(cell.get("outputs", [])):
            kind = next((k for k in KINDS if k in out.get("data", {})), None)
            if kind is None:
                continue
            name = PICTURE.format(f"{cell.id}-{i}{KINDS[kind]}")
            found[name] = (
                out.data[kind].encode() if kind == "image/svg+xml" else b64decode(out.data[kind])
            )
            out.data = nbformat.from_dict({"text/markdown": f"![](nbs/{name})"})
    return found


def from_root(link):
    "A link to a file in nbs/ as it reads from the repository's root; other links stay."
    before, target = link.groups()
    return f"{before}nbs/{target}" if (NBS / target).exists() else link.group()


def readme():
    "All that is to be written, as a dict from path to bytes."
    nb = read_nb(NBS / "index.ipynb")
    ReadmeFilter()(nb)
    nb = plain(nb)
    pictures = take_pictures(nb)
    exporter = MarkdownExporter()
    exporter.config.NbConvertBase.display_data_priority = [
        "text/markdown",
        "text/html",
        "text/plain",
    ]
    text, _ = exporter.from_notebook_node(nb)
    text = re.sub(r"<style.*?</style>\n?", "", text, flags=re.S)  # GitHub would show it as text
    files = {NBS / name: data for name, data in pictures.items()}
    text = re.sub(r'(\]\(|\b(?:src|href)=")([^)"#:]+)', from_root, text)
    files[ROOT / "README.md"] = (re.sub(r"\n{3,}", "\n\n", text).strip() + "\n").encode()
    return files


def main():
    os.chdir(ROOT)
    files = readme()
    old = [p for p in NBS.glob(PICTURE.format("*")) if p not in files]
    if "--check" not in sys.argv:
        for path in old:
            path.unlink()
        for path, data in files.items():
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
    elif old or any(not p.exists() or p.read_bytes() != data for p, data in files.items()):
        sys.exit(
            "README.md is not what nbs/index.ipynb says: run `make readme` and commit the result."
        )


if __name__ == "__main__":
    main()
