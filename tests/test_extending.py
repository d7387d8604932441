"Parts of one's own: what the page shows takes effect through the product's own ways in, and what is none is refused."

import ast
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from helpers import cells, forked, pictures, refused
from PIL import Image

from trainprove_nb.audit.checks import check_file
from trainprove_nb.audit.log_audit import find_out, measure, open_log_audit
from trainprove_nb.audit.outlook import outlook
from trainprove_nb.audit.reading import read_audit
from trainprove_nb.cli import main
from trainprove_nb.data.distance import distance, from_module, rms
from trainprove_nb.evidence.log_test import centred, log_test, shuffled_labels
from trainprove_nb.evidence.release_log import Recorder, new_key
from trainprove_nb.lab.engine import Lab, _attempt
from trainprove_nb.report.plan import CHECKS

CODE = [c.source for c in cells("nbs/extending.ipynb") if c.cell_type == "code"]
FILES = dict(
    re.findall(r'\(place / "(my_\w+\.py)"\)\.write_text\("""(.*?)"""\)', "".join(CODE), re.S)
)


@pytest.fixture
def place(tmp_path, monkeypatch):
    "A folder with the files of the page, where Python finds them."
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    forget()


def forget():
    "Let the modules of one's own be imported anew."
    for name in [n for n in sys.modules if n.startswith("my_")]:
        del sys.modules[name]


def test_the_page_has_a_file_of_each_part():
    assert sorted(FILES) == ["my_distance.py", "my_kind.py", "my_score.py", "my_suspect.py"]


# A distance


def test_a_distance_of_ones_own_measures_in_the_lab(place):
    "Of a stored artifact, by its name alone; and what an experiment is asked for is checked."
    emoji = {"kind": "pairs", "corpus": "emoji", "split": "evaluation", "n": 4, "size": 32}
    leak = {"kind": "leak", "pairs": emoji, "generated": {**emoji, "n": 2}}
    lab = Lab(str(place / "lab"))
    found = lab.array({**leak, "metric": "my_distance:coarse"})
    x = lab.pictures(emoji) / 255
    assert found[0] == 0 and np.isinf(found[3])
    blocks = (x[:1] - x[1:2]).reshape(1, 8, 4, 8, 4, 3).mean((2, 4))
    by_hand = np.sqrt((blocks**2).mean())
    assert np.allclose(distance("my_distance:coarse")(x[:1], x[1:2]), by_hand, atol=1e-6)
    assert not np.isclose(by_hand, rms(x[:1], x[1:2])[0])
    assert CHECKS["metric"]("my_distance:coarse", None, {}) == "my_distance:coarse"
    refused(lambda: CHECKS["metric"]("my_distance:fine", None, {}), "no distance", "AttributeError")


WRONG = """
import numpy as np

def total(x, y): return abs(x - y).sum()
def nothing(x, y): return np.full(len(x), np.nan)
def below(x, y): return np.full(len(x), -1.0)
value = 3
"""


@pytest.mark.parametrize(
    "name, says",
    [
        ("total", r"gave \(\) for 2 pairs"),
        ("nothing", "a finite number of at least 0"),
        ("below", "a finite number of at least 0"),
        ("value", "cannot be called"),
        ("missing", "there is no distance 'my_wrong:missing'"),
    ],
)
def test_what_is_no_distance_is_refused(place, name, says):
    (place / "my_wrong.py").write_text(WRONG)
    two = pictures(2)
    refused(lambda: distance(f"my_wrong:{name}")(two, two), says)


def test_pictures_that_do_not_fit_never_reach_a_distance_of_ones_own(place):
    refused(lambda: distance("my_distance:coarse")(pictures(2), pictures(3)), "cannot be compared")


def test_a_module_that_breaks_is_told_in_one_sentence(place):
    (place / "my_broken.py").write_text("1 / 0")
    refused(lambda: distance("my_broken:f"), "ZeroDivisionError", "module:name")
    refused(lambda: from_module("sys:nowhere", "score"), "no score 'sys:nowhere'")


def test_names_of_the_package_stay_what_they_were():
    refused(lambda: distance("rms:own"), "rms takes no file")
    refused(lambda: distance("rmz"), "choose from rms, tile_max, sscd, lpips, or give module")


# A suspect and a score


@pytest.fixture
def case(place):
    "A log of noise pictures, what alice was sent of it, and a file of the audit."

    def draw(prompts, seeds):
        drawn = [np.random.default_rng(s).integers(0, 255, (32, 32, 3), np.uint8) for s in seeds]
        return np.stack(drawn)

    service = Recorder(str(place / "log"), new_key(str(place / "key")), draw, {}, withheld=2)
    prompts = [f"a drawing of thing {k}" for k in range(20)]
    for prompt in prompts:
        (place / "sent.png").write_bytes(service.release(prompt, "alice"))
        with Image.open(place / "sent.png") as sent:
            np.savez(place / f"{prompt}.npz", np.asarray(sent))
    known = {prompt: np.load(place / f"{prompt}.npz")["arr_0"] for prompt in prompts}
    np.savez(place / "known.npz", **known)
    (place / "audit.yaml").write_text(
        "released: {log: log}\nsuspect: {adapter: my_suspect:copies}\ncontrol: {rhos: []}\n"
    )
    return place


ASKS = """
import numpy as np

def nearness(suspect, pictures, prompts):
    answers = suspect(prompts, list(range(len(prompts)))).astype(float)
    return -((answers - pictures) ** 2).mean((1, 2, 3))

def place(suspect, pictures, prompts): return np.arange(len(prompts), 0, -1)
def short(suspect, pictures, prompts): return np.zeros(3)
def nothing(suspect, pictures, prompts): return np.full(len(prompts), np.nan)
value = 3
"""


def test_the_command_asks_a_suspect_of_ones_own_by_a_score_of_ones_own(case):
    (case / "asks.py").write_text(ASKS)
    words = ["audit", "run", str(case / "audit.yaml"), "-s", "test.score=asks:nearness"]
    done = CliRunner().invoke(main, [*words, "-s", "suspect.settings.noise=60"])
    assert done.exit_code == 1, done.output[-2000:]
    report = json.loads((case / "audit/report.json").read_text())
    told = {fact["name"]: fact["value"] for fact in report["asked"]}
    assert report["verdict"]["state"] == "evidence" and report["tests"][0]["p"] <= 0.001
    assert told["suspect"] == "my_suspect:copies" and told["suspect, adapter"]
    assert re.search(r"60 pictures, by asks:nearness \(SHA-256 .* [0-9a-f]{64}\)", told["asked"])


def audited(case, **settings):
    audit = read_audit(case / "audit.yaml", {k.replace("__", "."): v for k, v in settings.items()})
    assert check_file(audit) == []
    opened = open_log_audit(audit)
    return find_out(opened, measure(opened))


def test_settings_reach_the_suspect_and_a_score_changes_the_result(case):
    (case / "asks.py").write_text(ASKS)
    usual, noisy = audited(case), audited(case, suspect__settings__noise="250")
    own = audited(case, test__score="asks:nearness")
    assert len({usual.verdict.z, noisy.verdict.z, own.verdict.z}) == 3
    assert usual.verdict.p <= 0.001 and own.verdict.p <= 0.001


def test_places_tell_a_score_nothing(case):
    "In the log the two sides stand one after the other, as a demonstration leaves them."
    (case / "asks.py").write_text(ASKS)
    audit = read_audit(case / "audit.yaml", {"test.score": "asks:place"})
    opened = open_log_audit(audit)
    order = np.argsort(~opened.log.released, kind="stable")
    opened.log = type(opened.log)(
        opened.log.images[order],
        [opened.log.texts[k] for k in order],
        opened.log.released[order],
        opened.log.block[order],
        [opened.log.files[k] for k in order],
    )
    leaking = np.arange(len(order), 0, -1)
    assert log_test(leaking, opened.log.released, opened.log.block).p <= 0.001
    assert find_out(opened, measure(opened)).verdict.p > 0.01


@pytest.mark.parametrize(
    "name, says", [("short", r"gave \(3,\) for 60 pictures"), ("nothing", "a finite number")]
)
def test_what_is_no_score_stops_the_audit(case, name, says):
    (case / "asks.py").write_text(ASKS)
    refused(lambda: audited(case, test__score=f"asks:{name}"), "test.score", says)


@pytest.mark.parametrize(
    "score, says",
    [
        ("asks:value", "test.score = 'asks:value'.*cannot be called: give a function of a suspect"),
        ("asks:missing", "asks.py defines no missing"),
        ("nowhere:score", "No module named 'nowhere'"),
    ],
)
def test_a_score_that_is_not_there_is_found_by_the_check(case, score, says):
    (case / "asks.py").write_text(ASKS)
    (told,) = check_file(read_audit(case / "audit.yaml", {"test.score": score}))
    assert re.search(says, told)


def test_the_outlook_names_the_score_and_promises_no_power(case):
    (case / "asks.py").write_text(ASKS)
    told = " ".join(outlook(read_audit(case / "audit.yaml", {"test.score": "asks:nearness"})))
    assert "Score: asks:nearness" in told and "exact" in told and "Controls: none" in told
    assert "Hope" not in told and "Time" not in told


def test_without_a_log_a_score_does_not_count(case):
    file = case / "without.yaml"
    file.write_text("suspect: {model: mini-v1}\ntest: {score: my_score:little_noise}\n")
    assert any("test.score" in x and "does not count" in x for x in check_file(read_audit(file)))


def test_the_score_of_the_page_takes_a_pipeline(case):
    "Suspects with weights are given as such."
    opened = open_log_audit(
        read_audit(
            case / "audit.yaml",
            {
                "suspect.adapter": "null",
                "suspect.model": "mini-v1",
                "test.score": "my_score:little_noise",
            },
        )
    )
    scores = measure(opened).scores
    assert scores.shape == (60,) and np.abs(scores).max() == 0  # the reference itself


# A test


def own_test():
    "The function of the page."
    (source,) = [c for c in CODE if c.startswith("def own_test")]
    names = {"np": np, "centred": centred, "shuffled_labels": shuffled_labels}
    exec(compile(ast.parse(source), "cell", "exec"), names)
    return names["own_test"]


def test_with_the_usual_statistic_it_is_the_log_test():
    rng = np.random.default_rng(0)
    prompts, released = np.repeat(np.arange(15), 3), np.tile([True, False, False], 15)
    scores = rng.normal(size=45) + 0.4 * released
    found = own_test()(lambda rest, labels: rest[labels].sum(), scores, released, prompts, 999)
    assert found == pytest.approx(log_test(scores, released, prompts, 999).p, abs=1e-12)


def test_it_is_exact():
    "Innocents are accused at .1 in a tenth of the logs."
    rng, test = np.random.default_rng(1), own_test()
    prompts, released = np.repeat(np.arange(8), 3), np.tile([True, False, False], 8)

    def spread(rest, labels):
        return (rest[labels] ** 3).sum()

    p = [test(spread, rng.normal(size=24), released, prompts, 99, k) for k in range(300)]
    assert 0.05 < np.mean(np.array(p) <= 0.1) < 0.15


# A kind of artifact

SIZES = {
    "kind": "my_kind:SIZES",
    "pairs": {"kind": "pairs", "corpus": "emoji", "split": "evaluation", "n": 3, "size": 32},
}


def test_a_process_that_knows_only_the_recipe_makes_it(place):
    "As every worker is: it finds the maker by the recipe's kind."
    forked(place / "log.txt", make, str(place))
    lab = Lab(str(place / "lab"))
    assert lab.store.has(SIZES)
    sizes = lab.array(SIZES)
    assert sizes.shape == (3,) and (sizes > 100).all()


def make(folder):
    "In a process that was begun before there was such a module."
    os.chdir(folder)
    sys.path.insert(0, folder)
    _attempt(str(Path(folder) / "lab"), SIZES)


def test_a_kind_of_ones_own_is_made_once_and_is_named_by_its_recipe(place):
    lab = Lab(str(place / "lab"))
    assert list(lab.build([SIZES], progress=False)) == [SIZES]
    first, source = lab.array(SIZES), FILES["my_kind.py"]
    (place / "my_kind.py").write_text(source.replace("len(encode", "5 * len(encode"))
    forget()
    assert (Lab(str(place / "lab")).array(SIZES) == first).all()
    assert (Lab(str(place / "another")).array(SIZES) == 5 * first).all()


@pytest.mark.parametrize(
    "recipe, says",
    [
        ({**SIZES, "kind": "my_kind:WEIGHTS"}, "there is no kind of recipe 'my_kind:WEIGHTS'"),
        ({**SIZES, "kind": "my_kind:make_sizes"}, "is no kind of recipe: give the module:NAME"),
        ({**SIZES, "kind": "nowhere:SIZES"}, "No module named 'nowhere'"),
        ({"kind": "my_kind:SIZES"}, "a recipe of kind 'my_kind:SIZES' lacks pairs: give pairs"),
        ({**SIZES, "m": 1}, "has the unknown m"),
    ],
)
def test_what_is_no_kind_is_refused_before_anything_is_made(place, recipe, says):
    refused(lambda: Lab(str(place / "lab")).path(recipe), says)
    assert list(place.rglob("recipe.json")) == []
