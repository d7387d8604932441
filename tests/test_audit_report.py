"The report of an audit: parts that check themselves, one safe page, files that are whole."

import base64
import hashlib
import json
import re
import shutil
import subprocess
import zlib
from contextlib import suppress
from html import escape
from html.parser import HTMLParser

import jsonschema
import pytest
from helpers import png, refused

from trainprove_nb.audit import report as r

STRANGER = (
    "<script>document.title='mine'</script><img src=http://192.0.2.1/x.png>\"'>{{ 7 * 7 }}&amp;"
)
LONG = "x" * 300


def a_test(**changed):
    "A test that finds something."
    told = dict(
        name="Log test",
        asks="Does the suspect know the released pictures better?",
        assumes=["Released and withheld pictures were drawn alike.", STRANGER],
        guarantee="exact",
        p=0.0004,
        effect=r.Effect(name="share learnt, λ", value=0.31, low=0.2),
        sentence="The released pictures are known better.",
        picture=png(),
        alt="Dots: " + STRANGER,
    )
    return r.Test(**told | changed)


def found(rho, k, of=10, how="models trained for it"):
    "A line of the table of power, with an interval that is wide enough."
    low, high = max(0, k / of - 0.2), min(1, k / of + 0.2)
    return r.Found(rho=rho, found=k, of=of, low=low, high=high, how=how)


def a_verdict(state="evidence", sentence="Evidence at level 0.05 that it was trained on the log."):
    return r.Verdict(state=state, sentence=sentence, level=0.05)


def full(**changed):
    "A report with all its parts, some of them by a stranger, some very long."
    pair = dict(prompt=STRANGER, released=png(), suspect=png())
    told = dict(
        verdict=a_verdict(),
        asked=[r.Fact(name="Date", value="2026-11-26"), r.Fact(name=STRANGER, value=LONG)],
        tests=[a_test(), a_test(name=LONG, guarantee="lead", p=None, effect=None)],
        controls=[a_test(name="Placebo", p=0.61, passed=True)],
        pairs=[r.Pair(**pair, innocent=png(), note=STRANGER), r.Pair(**pair | {"prompt": LONG})],
        power=[found(1, 10), found(0.3, 6), found(0.1, 2), found(1, 3, how=LONG)],
        cannot_tell=["How many of them.", STRANGER],
        repeat=r.Repeat(command=f"trainprove audit run {LONG}", file=STRANGER, seeds={"draws": 7}),
    )
    return r.AuditReport(**told | changed)


class Page(HTMLParser):
    "Tags, attributes and text of a page."

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.text, self.within = [], [], "", ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *a) for a in attributes]
        self.within = tag

    def handle_data(self, data):
        if self.within not in ("style", "title"):
            self.text += data


@pytest.fixture(scope="module")
def html():
    return r.report_html(full())


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


# The parts refuse what cannot be


@pytest.mark.parametrize("p", [-0.01, 1.01, float("nan"), float("inf"), "small"])
def test_a_p_value_lies_between_0_and_1(p):
    refused(lambda: a_test(p=p), "^Test: p = ")


@pytest.mark.parametrize("level", [0, 1, 5, float("nan")])
def test_a_level_lies_between_0_and_1(level):
    refused(
        lambda: r.Verdict(state="no evidence", sentence="None found.", level=level),
        f"^Verdict: level = {level}",
    )


@pytest.mark.parametrize("low, value, high", [(2, 1, 3), (0, 4, 3), (None, 4, 3), (5, 4, None)])
def test_an_effect_lies_in_its_interval(low, value, high):
    refused(
        lambda: r.Effect(name="z", value=value, low=low, high=high),
        f"{value}.* does not lie between {low}.* and {high}",
        "give low ≤ value ≤ high",
    )


@pytest.mark.parametrize("low, high", [(None, None), (1, None), (None, 1), (1, 1)])
def test_an_interval_may_be_open(low, high):
    assert r.Effect(name="z", value=1, low=low, high=high).value == 1


NO_PNG = {
    "empty": b"",
    "GIF": b"GIF89a",
    "cut off": png()[:60],
    "base64 of another": base64.b64encode(b"GIF89a").decode(),
    "text": "no base64!",
    "number": 7,
}


@pytest.mark.parametrize("data", NO_PNG.values(), ids=NO_PNG)
def test_only_png_pictures(data):
    refused(lambda: a_test(picture=data), "^Test: picture: this is no PNG picture")
    for side in ("released", "suspect", "innocent"):
        pair = dict(prompt="a", released=png(), suspect=png()) | {side: data}
        refused(lambda pair=pair: r.Pair(**pair), f"^Pair: {side}: this is no PNG picture")


@pytest.mark.parametrize("alt", ["", "  "])
def test_a_picture_has_words(alt):
    refused(lambda: a_test(alt=alt), "say in alt what it shows")
    assert a_test(picture=None, alt=alt).picture is None


def test_no_more_are_found_than_asked():
    line = dict(rho=0.3, low=0, high=1, how="trained")
    refused(lambda: r.Found(**line, found=5, of=4), "^Found: found = 5 of 4")
    refused(lambda: r.Found(**line, found=0, of=0), "of = 0")
    refused(lambda: r.Found(**line | {"low": 0.6}, found=1, of=2), "0.5 does not lie between 0.6")
    refused(lambda: r.Found(**line | {"rho": 0}, found=1, of=2), "rho = 0")
    assert r.Found(rho=1, found=1, of=3, low=1 / 3, high=1 / 3, how="all").of == 3


@pytest.mark.parametrize("tests", [[], [dict(p=0.051)], [dict(p=None)], [dict(guarantee="lead")]])
def test_evidence_has_a_test_that_carries_it(tests):
    refused(
        lambda: full(tests=[a_test(**t) for t in tests]), "^AuditReport: the verdict is 'evidence'"
    )
    quiet = a_verdict("cannot decide", "Cannot decide: too few pictures.")
    assert full(verdict=quiet, tests=[a_test(**t) for t in tests])


@pytest.mark.parametrize("test", [dict(p=0.05), dict(guarantee="estimate", p=0.01)])
def test_exact_tests_and_estimates_carry_evidence(test):
    assert full(tests=[a_test(guarantee="lead"), a_test(**test)]).verdict.state == "evidence"


@pytest.mark.parametrize("word", ["guilty", "Guilt", "innocent", "not innocent", "innocence"])
def test_a_verdict_leaves_courts_their_words(word):
    refused(lambda: a_verdict(sentence=f"The suspect shows {word}."), f"'{word}'.*court's word")


@pytest.mark.parametrize(
    "state, says", [("guilty", "state = 'guilty'"), (None, "state = None"), ("EVIDENCE", "state")]
)
def test_there_are_three_states(state, says):
    refused(lambda: a_verdict(state), says, "'evidence', 'no evidence' or 'cannot decide'")


def test_fields_are_neither_invented_nor_left_out():
    refused(lambda: r.Fact(name="log", value="a", unit="b"), "^Fact: unit: Extra inputs")
    refused(lambda: r.Fact(name="log"), "^Fact: value: Field required")
    refused(lambda: full(tests=None, pairs=7), "tests = None", "pairs = 7")
    with pytest.raises(ValueError, match="frozen"):
        full().verdict = a_verdict()


# Numbers and sentences


@pytest.mark.parametrize(
    "value, text",
    [
        (0, "0"),
        (1, "1"),
        (0.05, "0.05"),
        (0.0504, "0.0504"),
        (1e-7, "0.0000001"),
        (1e-300, "nearly 0"),
        (-0.56191, "−0.562"),
        (14.188, "14.2"),
        (140.0, "140"),
        (1234567, "1,234,567"),
        (-4000.2, "−4,000"),
    ],
)
def test_numbers_are_written_out(value, text):
    assert r._number(value) == text


@pytest.mark.parametrize(
    "p, text", [(1e-4, "about 1 in 10,000"), (0.0193, "about 1 in 52"), (0.3, ""), (0, "")]
)
def test_small_p_values_as_newspapers_put_them(p, text):
    assert r._odds(p) == text


@pytest.mark.parametrize(
    "level, often",
    [(0.05, "1 of 20"), (0.01, "1 of 100"), (0.03, "3 of 100"), (0.001, "1 of 1000")],
)
def test_what_an_exact_test_promises(level, often):
    assert f"at most {often} audits" in r._promise(a_test(), level)
    assert "at most" not in r._promise(a_test(guarantee="estimate"), level)


@pytest.mark.parametrize(
    "counts, says",
    [
        ({0.1: 2, 0.3: 8, 1: 10}, "^From ρ = 0.3 on, at least half were found.$"),
        ({0.1: 6, 0.3: 2, 1: 5}, "^From ρ = 1 on, at least half were found. They are few"),
        ({0.1: 10, 1: 4}, "^At the largest ρ that was tried, fewer than half"),
    ],
)
def test_the_smallest_rho_that_is_seen(counts, says):
    rows = [found(rho, k) for rho, k in counts.items()]
    assert re.search(says, r._smallest(rows))
    ((how, sorted_rows, told),) = r._powers(rows[::-1])
    assert (how, told) == ("models trained for it", r._smallest(rows)) and sorted_rows == rows


@pytest.mark.parametrize(
    "state, says",
    [
        ("evidence", "at most 1 of 20 audits"),
        ("no evidence", "does not show that the suspect did not train"),
        ("cannot decide", "neither for nor against"),
    ],
)
def test_the_page_says_what_its_verdict_means(state, says):
    text = Page(r.report_html(full(verdict=a_verdict(state, "As it is.")))).text
    assert says in text and f"Verdict: {state}" in text


def test_a_control_that_failed_stands_beside_the_verdict():
    failed = a_test(name="Blind baseline", passed=False)
    for told in (dict(controls=[failed]), dict(tests=[a_test(), failed])):
        html = r.report_html(full(**told))
        assert "not come out as it should: Blind baseline." in html[: html.index("<nav")]
    assert r._doubts(full(controls=[a_test(passed=True), a_test(passed=None)])) == []


def test_only_used_words_are_explained():
    words = r._words_of(
        "<style>encoder</style><p class='log'>Exact <b>p-values</b>, shadows; ρ</p>"
    )
    assert list(words) == ["exact", "p-value", "shadow", "ρ"]


# The page


ORDER = ["asked", "evidence", "pairs", "power", "limits", "controls", "words", "repeat"]


def test_the_parts_stand_in_their_order(html, page):
    assert re.findall(r'<section id="(\w+)">', html) == ORDER
    links = [value[1:] for _, name, value in page.attributes if name == "href"]
    assert links == ORDER  # and no other
    head = html[: html.index("<nav")]
    for said in ("Evidence at level 0.05 that", "<b>0.05</b>", "<b>2026-11-26</b>"):
        assert said in head


def test_what_is_not_there_is_said():
    none = full(controls=[], pairs=[], power=[], asked=[], cannot_tell=[])
    page = Page(r.report_html(none))
    for said in ("Neither a placebo nor a control", "not known what this audit", "not recorded"):
        assert said in page.text
    assert ("section", "id", "pairs") not in page.attributes


def test_strangers_cannot_inject(html, page):
    assert not {"script", "iframe", "object", "link", "base", "form"} & set(page.tags)
    assert page.text.count(STRANGER) >= 6  # as text, to the letter
    assert page.tags.count("img") == 3 + 5  # of tests, of pairs
    named = {name for _, name, _ in page.attributes}
    assert not [name for name in named if name.startswith("on")]


def test_the_page_needs_nothing_else(page):
    fetched = [v for _, name, v in page.attributes if name in ("src", "srcset", "poster", "data")]
    assert fetched and all(v.startswith("data:image/png;base64,") for v in fetched)
    style = (r.Path(r.__file__).parent / "report.html.jinja").read_text()
    assert not re.search(r"url\(|@import|https?:", style)
    (policy,) = [v for _, name, v in page.attributes if name == "content" and "default-src" in v]
    assert policy.startswith("default-src 'none'")


def test_every_picture_has_words_on_the_page(page):
    alts = [value for _, name, value in page.attributes if name == "alt"]
    assert len(alts) == page.tags.count("img") and all(alts)


def test_neither_guilty_nor_innocent(page):
    assert re.findall(r"guilt\w*|innocen\w*", page.text, re.I) == []
    for state in ("no evidence", "cannot decide"):
        text = Page(r.report_html(full(verdict=a_verdict(state, "As it is.")))).text
        assert re.findall(r"guilt\w*|innocen\w*", text, re.I) == []
    assert re.findall(r"guilt\w*|innocen\w*", " ".join(r._WORDS.values()), re.I) == []


def luminance(colour):
    "Relative luminance of #rrggbb (WCAG 2)."
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), parts, strict=True))


def test_text_can_be_read_on_its_paper(html):
    palettes = re.findall(
        r"--paper: (#\w{6}); --ink: (#\w{6}); --soft: (#\w{6}).*?--mark: (#\w{6})", html
    )
    assert len(palettes) == 2  # light and dark; print has its own
    for paper, *inks in palettes:
        for ink in inks:
            dark, light = sorted([luminance(paper), luminance(ink)])
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (paper, ink)


# The files


def test_same_report_same_bytes_and_back(tmp_path):
    told = [r.write_report(full(), tmp_path / name / "deep") for name in "ab"]
    assert [p.name for p in told] == ["report.html"] * 2
    one, other = (p.parent for p in told)
    for name in ("report.html", "report.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    assert sorted(p.name for p in one.iterdir()) == ["report.html", "report.json"]
    assert r.read_report(one) == full()
    digest = hashlib.sha256((one / "report.json").read_bytes()).hexdigest()
    assert digest in (one / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_killed_write_leaves_the_old_report(tmp_path, monkeypatch, where):
    r.write_report(full(), tmp_path)
    old = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    new = full(cannot_tell=["Something else."])

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(r.os, where, killed)
        r.write_report(new, tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in old} == old
    assert r.read_report(tmp_path) == full()
    r.write_report(new, tmp_path)
    assert r.read_report(tmp_path) == new
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "report.json"]


def test_a_folder_that_cannot_be_written(blocked):
    refused(lambda: r.write_report(full(), blocked), "cannot write the report to", error=OSError)


def test_a_report_that_is_not_there(tmp_path):
    refused(lambda: r.read_report(tmp_path), "report.json is not there", error=FileNotFoundError)


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda told: told["tests"][0].update(p=2), r"tests.0: Test: p = 2"),
        (lambda told: told["tests"][0].update(picture="R0lGODlh"), "tests.0: Test: picture: .*PNG"),
        (lambda told: told["tests"][0].update(p=0.9), "the verdict is 'evidence'"),
        (lambda told: told.update(more=1), "more: Extra inputs"),
        (lambda told: told.pop("repeat"), "repeat: Field required"),
    ],
)
def test_a_report_that_was_altered(tmp_path, change, says):
    told = json.loads((r.write_report(full(), tmp_path).parent / "report.json").read_text())
    change(told)
    (tmp_path / "report.json").write_text(json.dumps(told))
    refused(lambda: r.read_report(tmp_path), "report.json is no report: AuditReport: ", says)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00"])
def test_what_is_no_report(tmp_path, text):
    (tmp_path / "report.json").write_text(text)
    refused(lambda: r.read_report(tmp_path), "report.json is no report: AuditReport: ")


# The schema


def test_the_schema_describes_what_is_written(tmp_path):
    schema = json.loads(json.dumps(r.report_schema()))
    jsonschema.Draft202012Validator.check_schema(schema)
    told = json.loads(r._json(full()))
    jsonschema.validate(told, schema)
    for path, value in {
        ("verdict", "level"): 2,
        ("power", 0, "of"): -1,
        ("tests", 0, "p"): 2,
    }.items():
        wrong = json.loads(r._json(full()))
        part = wrong
        for key in path[:-1]:
            part = part[key]
        part[path[-1]] = value
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


def test_every_field_is_described():
    schema = r.report_schema()
    parts = {"AuditReport": schema, **schema["$defs"]}
    names = {"AuditReport", "Verdict", "Fact", "Effect", "Test", "Pair", "Found", "Repeat"}
    assert set(parts) == names
    bare = [
        f"{part}.{field}"
        for part, told in parts.items()
        for field, says in told["properties"].items()
        if not says.get("description")
    ]
    assert bare == [] and all(told["additionalProperties"] is False for told in parts.values())


def test_pictures_are_base64_that_anybody_reads():
    told = json.loads(r._json(full()))
    assert base64.b64decode(told["pairs"][0]["released"], validate=True) == png()


def test_a_report_shows_itself_in_a_frame():
    shown = Page(full()._repr_html_())
    ((_, _, srcdoc),) = [a for a in shown.attributes if a[1] == "srcdoc"]
    assert srcdoc == r.report_html(full()) and set(shown.tags) == {"iframe"}


# In a browser, without a network

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
browser = pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
WIDTHS = 320, 390, 1200
MEASURE = """<script>onload = () => { const told = [...document.querySelectorAll('iframe')].map(f => {
  const d = f.contentDocument, s = f.contentWindow.getComputedStyle(d.body);
  return {wide: d.documentElement.scrollWidth, paper: s.backgroundColor, ink: s.color, title: d.title,
    clipped: [...d.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > f.width)
      .map(e => e.tagName),
    drawn: [...d.images].map(i => i.complete && i.naturalWidth > 0)} });
  document.body.innerHTML = '<pre id="told">' + JSON.stringify(told) + '</pre>' }</script>"""


def chromium(tmp_path, *flags):
    "Run Chromium without a window and a network; returns what it printed."
    safe = "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"
    away = f"--user-data-dir={tmp_path}/profile", "--host-resolver-rules=MAP * 0.0.0.0"
    done = subprocess.run(
        [BROWSER, *safe, *away, *flags], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@browser
@pytest.mark.parametrize("scheme, darker", [(1, "ink"), (0, "paper")], ids=["light", "dark"])
def test_the_page_fits_phones_and_follows_the_scheme(tmp_path, html, scheme, darker):
    frames = "".join(
        f'<iframe width="{w}" height="800" srcdoc="{escape(html)}"></iframe>' for w in WIDTHS
    )
    (tmp_path / "frames.html").write_text(f"<!doctype html>{frames}{MEASURE}", encoding="utf-8")
    flags = f"--blink-settings=preferredColorScheme={scheme}", "--dump-dom"
    dom = chromium(tmp_path, *flags, (tmp_path / "frames.html").as_uri())
    told = json.loads(re.search(r'<pre id="told">(.*?)</pre>', dom, re.S)[1])
    for width, frame in zip(WIDTHS, told, strict=True):
        assert frame["wide"] <= width and frame["clipped"] == [], width
        assert len(frame["drawn"]) == 8 and all(frame["drawn"])
        assert frame["title"] == "Audit report: evidence"  # no script of a stranger's ran
        bright = {k: sum(map(int, re.findall(r"\d+", frame[k])[:3])) for k in ("ink", "paper")}
        assert min(bright, key=bright.get) == darker


@browser
def test_the_page_prints_on_a4(tmp_path, html):
    (tmp_path / "report.html").write_text(html, encoding="utf-8")
    printed = f"--print-to-pdf={tmp_path}/report.pdf", "--no-pdf-header-footer"
    dark = "--blink-settings=preferredColorScheme=0"
    chromium(tmp_path, *printed, dark, (tmp_path / "report.html").as_uri())
    pdf = (tmp_path / "report.pdf").read_bytes()
    sizes = {tuple(map(float, m.split())) for m in re.findall(rb"/MediaBox \[0 0 ([^\]]+)\]", pdf)}
    assert len(sizes) == 1 and all(abs(a - b) < 1 for a, b in zip(*sizes, (595, 842), strict=True))
    assert 3 <= len(re.findall(rb"/Type /Page\b", pdf)) <= 12


@browser
def test_the_page_is_printed_on_a_few_pages_with_words_on_each(tmp_path, html):
    (tmp_path / "report.html").write_text(html, encoding="utf-8")
    chromium(tmp_path, f"--print-to-pdf={tmp_path}/report.pdf", (tmp_path / "report.html").as_uri())
    pdf = (tmp_path / "report.pdf").read_bytes()
    pages = len(re.findall(rb"/Type /Page\b", pdf))
    written = 0
    for stream in re.findall(rb"stream\r?\n(.*?)\r?\nendstream", pdf, re.S):
        with suppress(zlib.error):
            written += re.search(rb"T[jJ]\b", zlib.decompress(stream)) is not None
    assert 2 <= pages <= 12 and written >= pages
