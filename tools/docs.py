"The documentation as pages that open from the disk, without Quarto: `python tools/docs.py FOLDER`."

import gc
import json
import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import yaml
from bs4 import BeautifulSoup, NavigableString
from colab import PLACE
from execnb.nbio import read_nb
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbdev.config import get_config
from nbdev.quarto import proc_nbs, refresh_quarto_yml
from pygments.formatters import HtmlFormatter
from readme import NBS, ROOT, plain

SITE = Path(__file__).resolve().parent / "site"
LINK = re.compile(r'href="((?:[^":/]+/)*)([^":/]+)\.ipynb')
QUARTO = re.compile(
    r'\{target="_blank"[^}]*\}'
)  # attributes that nbdev gives its links to the source
FORMULA = re.compile(r"(\$\$.+?\$\$|\$[^\s$](?:[^$]*[^\s$])?\$)", re.S)
SUMMARY = re.compile(r'^#\| code-summary: "(.*)"', re.M)  # what stands where code is folded
LONG = 15  # lines of code that are shown unasked; what is longer is folded
# Its template gives pictures the text that stands for them
EXPORTER = HTMLExporter(
    template_name="basic", exclude_input_prompt=True, exclude_output_prompt=True
)
# What cleans notebooks of strangers takes half of the time, and changes nothing in ours
EXPORTER.register_filter("clean_html", lambda html: html)
TEMPLATES = Environment(
    loader=FileSystemLoader(SITE), autoescape=True, undefined=StrictUndefined, trim_blocks=True
)


@dataclass
class Page:
    "One page of the site."

    file: Path  # from the site's folder
    title: str
    subtitle: str
    body: BeautifulSoup

    @property
    def short(self) -> str:
        "The title up to its colon, for the sidebar."
        return self.title.split(":")[0]

    def headings(self) -> list:  # (level, anchor, text)
        "The headings below the title, for the contents of the page."
        found = self.body.find_all(["h2", "h3"], id=True)
        return [(h.name, h["id"], heading_text(h)) for h in found]


def heading_text(heading) -> str:
    "A heading without the sign that links to it."
    return heading.get_text().removesuffix("¶").strip()


def mark_code(nb) -> list:  # of the summaries that folded cells ask for
    "Tag the cells whose code is what the page is about, which stay open, and those that a reader opens."
    summaries = []
    for cell in nb.cells:
        if cell.cell_type == "code" and "#| code-fold: show" in cell.source:
            cell.metadata["tags"] = ["exported"]
        if cell.cell_type == "code" and "#| code-fold: true" in cell.source:
            cell.metadata["tags"] = ["folded"]
            summaries.append(SUMMARY.search(cell.source)[1])
    return summaries


def drop_warnings(nb) -> None:
    "Leave out what libraries said to stderr when nbdev imported them."
    for cell in nb.cells:
        if cell.cell_type == "code":
            cell["outputs"] = [o for o in cell.get("outputs", []) if o.get("name") != "stderr"]


def fold_code(body, summaries) -> None:
    "Put every cell of code into an element that opens and closes."
    summaries = iter(summaries)
    for cell in body.select("div.code_cell > div.input"):
        code = cell.get_text().strip()
        first = code.splitlines()[0] if code else ""
        folded = "celltag_folded" in cell.parent["class"]
        exported = "celltag_exported" in cell.parent["class"]
        imports = re.match(r"(from|import) ", first)
        cell.name = "details"
        if exported or not (folded or imports or code.count("\n") >= LONG):
            cell["open"] = ""
        summary, line = body.new_tag("summary"), body.new_tag("code", string=first)
        summary.append(next(summaries) if folded else line)
        cell.insert(0, summary)


def formula(text) -> BeautifulSoup:
    "A formula between dollars as MathML, which browsers draw without help."
    display = "block" if text.startswith("$$") else "inline"
    return BeautifulSoup(convert(text.strip("$"), display=display), "html.parser")


def set_formulas(body) -> None:
    "Replace formulas in texts, not in code."
    for text in body.find_all(string=FORMULA):
        if text.find_parent(["code", "pre", "script"]):
            continue
        parts = FORMULA.split(text)
        drawn = [formula(p) if k % 2 else NavigableString(p) for k, p in enumerate(parts)]
        text.replace_with(*drawn)


def stay_here(body, here) -> None:
    "Let links that nbdev makes of names in backticks lead to this site's pages, not to the published ones."
    config = get_config()
    address = f"{config.doc_host.rstrip('/')}{config.doc_baseurl.rstrip('/')}/"
    for link in body.find_all("a", href=True):
        if link["href"].startswith(address):
            file, mark, anchor = link["href"].removeprefix(address).partition("#")
            link["href"] = Path(os.path.relpath(file, here)).as_posix() + mark + anchor.lower()


def name_anchors(body) -> None:
    "Name headings as Quarto does, in small letters and unquoted, so that a link fits both sites."
    for element in body.find_all(id=True):
        element["id"] = unquote(element["id"]).lower()
    for link in body.select("a.anchor-link"):
        link["href"] = unquote(link["href"]).lower()


def page(path, here) -> Page:
    "One processed notebook, of a folder of the site, as a page."
    nb = read_nb(path)
    raw = next((c.source for c in nb.cells if c.cell_type == "raw"), "")
    nb.frontmatter_ = front = next(yaml.safe_load_all(raw), None) or {}
    summaries = mark_code(nb)
    drop_warnings(nb)
    html, _ = EXPORTER.from_notebook_node(plain(nb))
    html = QUARTO.sub("", LINK.sub(r'href="\1\2.html', html))
    body = BeautifulSoup(html, "html.parser")
    name_anchors(body)
    stay_here(body, here)
    set_formulas(body)
    fold_code(body, summaries)
    return Page(
        file=here / front.get("output-file", f"{path.stem}.html"),
        title=front.get("title", path.stem),
        subtitle=front.get("description", ""),
        body=body,
    )


def chapters(pages: dict) -> list:  # (chapter, its pages)
    "The book's order, from nbs/sidebar.yml. Raises KeyError for a notebook that is not there."
    contents = yaml.safe_load((NBS / "sidebar.yml").read_text())["website"]["sidebar"]["contents"]
    found = []
    for entry in contents:
        part = entry["contents"] if isinstance(entry, dict) else [entry]
        listed = [pages[Path(p).with_suffix(".html")] for p in part]
        if isinstance(entry, dict):
            found.append((entry["section"], listed))
        elif found and found[-1][0] == "":
            found[-1][1].extend(listed)
        else:
            found.append(("", listed))
    return found


def sections(found: Page):
    "A page cut at its headings, for the search: (anchor, heading, text)."
    anchor, heading, words = "", "", []
    for element in found.body.find_all(["h1", "h2", "h3", "p", "li", "td", "pre"]):
        if element.name in ("h1", "h2", "h3"):
            yield anchor, heading, " ".join(words)
            anchor, heading, words = element.get("id", ""), heading_text(element), []
        elif element.name != "pre":
            words.append(" ".join(element.get_text(" ").split()))
        elif element.find_parent("details"):  # of code, what it defines
            words += re.findall(r"(?:def|class) (\w+)", element.get_text())
    yield anchor, heading, " ".join(words)


def search_index(pages: list) -> str:
    "A script that defines what is searched: pages from a disk may load scripts, and no other files."
    rows = [
        [found.file.as_posix(), found.title, anchor, heading, text]
        for found in pages
        for anchor, heading, text in sections(found)
        if heading or text
    ]
    return f"window.SECTIONS = {json.dumps(rows, ensure_ascii=False, separators=(',', ':'))};\n"


def highlighting() -> str:
    "The colours of code, by day and by night."
    day = HtmlFormatter(style="default").get_style_defs(".highlight")
    night = HtmlFormatter(style="github-dark").get_style_defs(':root[data-theme="dark"] .highlight')
    return f"{day}\n{night}\n"


def process() -> Path:
    "Let nbdev process the notebooks; returns the folder where they are."
    refresh_quarto_yml()
    return proc_nbs(force=True, n_workers=0)  # here: each worker would import torch again


def read_pages(processed: Path, out: Path) -> dict:  # file -> page
    "All pages; other files go to `out` as they are, but for Quarto's."
    pages = {}
    for path in sorted(p for p in processed.rglob("*") if p.is_file()):
        here = path.relative_to(processed)
        if path.suffix == ".ipynb":
            pages[here.with_suffix(".html")] = page(path, here.parent)
        elif path.suffix not in (".yml", ".css"):
            (out / here.parent).mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, out / here)
    return pages


def write_pages(out: Path, book: list) -> None:
    "Every page with its neighbours, the sidebar and its own contents."
    order = [found for _, part in book for found in part]
    template, config = TEMPLATES.get_template("page.html.jinja"), get_config()
    for before, found, after in zip([None, *order], order, [*order[1:], None], strict=False):

        def link(other, here=found.file.parent):
            return Path(os.path.relpath(other.file, here)).as_posix()

        base = "../" * (len(found.file.parts) - 1)
        html = template.render(
            site=config.title, page=found, book=book, before=before, after=after, link=link,
            base=base, body=str(found.body), source=config.git_url,
            colab=PLACE + found.file.with_suffix(".ipynb").as_posix(),
        )  # fmt: skip
        (out / found.file).parent.mkdir(parents=True, exist_ok=True)
        (out / found.file).write_text(html, encoding="utf-8")


def build(out: Path) -> None:
    "Write all pages, the pictures they use, the search index and llms.txt into the folder `out`."
    out.mkdir(parents=True, exist_ok=True)
    book = chapters(read_pages(process(), out))
    write_pages(out, book)
    order = [found for _, part in book for found in part]
    (out / "search-index.js").write_text(search_index(order), encoding="utf-8")
    (out / "site.css").write_text((SITE / "site.css").read_text() + highlighting())
    shutil.copy2(SITE / "site.js", out)
    config = get_config()
    llms = TEMPLATES.get_template("llms.txt.jinja")
    told = llms.render(title=config.title, description=config.description, book=book)
    (out / "llms.txt").write_text(told, encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit("Name the folder for the pages: python tools/docs.py FOLDER")
    out = Path(sys.argv[1]).resolve()
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))  # the notebooks import the package beside them
    build(out)
    print(out)
    gc.freeze()  # for each page there was a shell, and each looks for garbage when all ends
