"""The site that `make docs` builds: pages that open from a disk, links that lead somewhere, a search that finds.

Where there is a Chromium a sample of pages is opened in it; SITE_PAGES=all opens all of them."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest
from bs4 import BeautifulSoup
from helpers import NOTEBOOKS, ROOT, run

SAMPLE = ("index.html", "tour.html", "which_test.html", "evidence/log_test.html")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "The whole site, built from a copy."
    root = tmp_path_factory.mktemp("copy")
    for name in ("nbs", "tools"):
        shutil.copytree(
            ROOT / name, root / name, symlinks=True, ignore=shutil.ignore_patterns("_*")
        )
    for name in ("settings.ini", "_quarto.yml"):
        shutil.copy2(ROOT / name, root)
    (root / "trainprove_nb").symlink_to(ROOT / "trainprove_nb")
    out = tmp_path_factory.mktemp("site")
    done = run("tools/docs.py", str(out), cwd=root)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == str(out)
    return out


@pytest.fixture(scope="module")
def pages(site):
    "Every page, read: its path in the site -> its HTML."
    found = sorted(site.rglob("*.html"))
    return {
        p.relative_to(site).as_posix(): BeautifulSoup(p.read_text(encoding="utf-8"), "html.parser")
        for p in found
    }


def test_every_notebook_has_a_page_with_one_title(pages):
    there = [p for p in NOTEBOOKS if not p.name.endswith(".drawn.ipynb")]
    assert sorted(pages) == sorted(
        p.relative_to("nbs").with_suffix(".html").as_posix() for p in there
    )
    assert [name for name, html in pages.items() if len(html.find_all("h1")) != 1] == []


def test_every_page_opens_in_colab(pages):
    "The notebook that its link names is the page's, and is there."
    main = "https://colab.research.google.com/github/trainprove/trainprove_nb/blob/main/"
    for name, html in pages.items():
        notebook = html.find("a", class_="colab")["href"].removeprefix(main)
        assert (ROOT / notebook).is_file() and notebook == f"nbs/{name[:-5]}.ipynb"
        assert (
            "# as in Colab" not in html.get_text()
        )  # the cell that installs is not part of the page


def dead_links(site, pages):
    "Links within the site that lead nowhere: (page, link)."
    anchors = {name: {e["id"] for e in html.find_all(id=True)} for name, html in pages.items()}
    for name, html in pages.items():
        for element in html.find_all(href=True) + html.find_all(src=True):
            link = element.get("href") or element.get("src")
            if re.match(r"[a-z]+:", link):
                continue
            file, _, anchor = link.partition("#")
            target = os.path.normpath(Path(name).parent / unquote(file)) if file else name
            if not (site / target).is_file():
                yield name, link
            elif anchor and target in anchors and unquote(anchor) not in anchors[target]:
                yield name, link


def test_no_link_is_dead(site, pages):
    assert sorted(set(dead_links(site, pages))) == []


def test_links_of_names_stay_on_this_site(pages):
    "Names in backticks are links, which nbdev gives the address of the published site."
    links = [a["href"] for html in pages.values() for a in html.find_all("a", href=True)]
    assert [x for x in links if x.startswith("https://trainprove.github.io/trainprove_nb/")] == []
    named = pages["api.html"].select("main td:first-child a[href*='#']")
    assert len({a["href"] for a in named}) > 700


def test_a_dead_link_is_noticed(tmp_path):
    (tmp_path / "a.html").touch()
    text = (
        '<h2 id="x"></h2><a href="#x"></a><a href="#y"></a><a href="b.html"></a><img src="c.png">'
    )
    found = dead_links(tmp_path, {"a.html": BeautifulSoup(text, "html.parser")})
    assert [link for _, link in found] == ["#y", "b.html", "c.png"]


def test_links_of_the_readme_and_its_like_lead_somewhere():
    for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"):
        text = re.sub(r"```.*?```|`[^`]*`", "", (ROOT / name).read_text(), flags=re.S)
        links = re.findall(r"\]\(([^)#:\s]+)[)#]", text)
        assert [x for x in links if not (ROOT / x).exists()] == [], name


def test_nothing_is_loaded_from_elsewhere(site, pages):
    outside = {
        name: [e for e in html.find_all(["script", "img", "iframe", "link"]) if loads(e)]
        for name, html in pages.items()
    }
    assert {name: found for name, found in outside.items() if found} == {}
    for name in ("site.css", "site.js"):
        assert not re.search(r"https?:|@import|url\(", (site / name).read_text()), name


def loads(element):
    "Whether an element takes something from the network."
    return re.match(r"(https?:)?//", element.get("src") or element.get("href") or "")


def test_pages_turn_in_the_book_s_order(pages):
    name, seen = "index.html", []
    while name:
        seen.append(name)
        after = pages[name].find("a", rel="next")
        name = after and os.path.normpath(Path(name).parent / after["href"])
    assert sorted(seen) == sorted(pages)


def test_formulas_are_drawn_and_code_is_not_taken_for_one(pages):
    html = pages["attribution/conf.html"]
    assert html.find("math") and "$" not in html.find("main").find("p").get_text()
    assert "$KEY" not in str(html) or not html.select("code math, pre math")
    assert [name for name, html in pages.items() if html.select("code math, pre math")] == []


def test_code_is_folded_where_it_is_long(pages):
    cells = pages["evidence/log_test.html"].select("details.input")
    defines = [c for c in cells if "def log_test(" in c.get_text()]
    imports = [c for c in cells if c.summary.get_text().startswith("import ")]
    assert [c.has_attr("open") for c in defines] == [True]
    assert imports and not any(c.has_attr("open") for c in imports)


def test_llms_txt_names_every_page(site, pages):
    text = (site / "llms.txt").read_text(encoding="utf-8")
    assert text.startswith("# trainprove_nb\n\n> ")
    assert sorted(re.findall(r"^- \[.*\]\((\S+)\): \S", text, re.M)) == sorted(pages)


# In a browser


def browse(address, folder, *options):
    "Open a page without a network: (what it became, what it complained of)."
    command = [
        CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        f"--user-data-dir={folder}", "--host-resolver-rules=MAP * ~NOTFOUND",
        "--virtual-time-budget=4000", "--enable-logging=stderr", "--dump-dom", *options, address,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return done.stdout, re.findall(r":CONSOLE[:(]\d+\)?\] (.*)", done.stderr)


@pytest.fixture(scope="module")
def profile(tmp_path_factory):
    return tmp_path_factory.mktemp("profile")


@needs_chromium
def test_every_page_opens_without_a_complaint(site, pages, profile):
    opened = pages if os.environ.get("SITE_PAGES") == "all" else SAMPLE
    for name in opened:
        text, complaints = browse((site / name).as_uri(), profile)
        assert complaints == [], (name, complaints)
        assert "</main>" in text and 'data-theme="' in text, name


@needs_chromium
def test_a_complaint_is_noticed(tmp_path, profile):
    (tmp_path / "bad.html").write_text("<script>undefinedThing()</script>")
    _, complaints = browse((tmp_path / "bad.html").as_uri(), profile)
    assert len(complaints) == 1 and "undefinedThing" in complaints[0]


@needs_chromium
@pytest.mark.parametrize(
    "words, page",
    [
        ("log_test", "evidence/log_test.html"),
        ("SDXL", "faq.html"),
        ("secret coin", "evidence/release_log.html"),
    ],
)
def test_search_finds(site, profile, words, page):
    address = (site / "evidence/log_test.html").as_uri() + "?q=" + words.replace(" ", "%20")
    text, complaints = browse(address, profile)
    found = BeautifulSoup(text, "html.parser").select("#found a")
    linked = [os.path.normpath(Path("evidence") / a["href"].partition("#")[0]) for a in found]
    assert complaints == [] and page in linked[:5], linked


@needs_chromium
def test_search_says_when_it_finds_nothing(site, profile):
    text, _ = browse((site / "index.html").as_uri() + "?q=xyzzyx", profile)
    assert BeautifulSoup(text, "html.parser").select_one("#found").get_text() == (
        "No page has all these words."
    )


def test_search_index_is_a_script_that_can_be_read(site, pages):
    text = (site / "search-index.js").read_text(encoding="utf-8")
    assert text.startswith("window.SECTIONS = [") and len(text) < 5_000_000
    node = shutil.which("node")
    if node:
        tell = "global.window = {}; require(process.argv[1]); console.log(window.SECTIONS.length)"
        done = subprocess.run([node, "-e", tell, site / "search-index.js"], capture_output=True)
        assert int(done.stdout) > len(pages)


def test_the_folder_must_be_named():
    done = subprocess.run(
        [sys.executable, "tools/docs.py"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1 and "Name the folder" in done.stderr
