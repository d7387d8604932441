"Exercises: what is right is told to be right, what is wrong is not, and nothing is told before there is an answer."

import re

import numpy as np
import pytest
from helpers import ROOT, cells, contents

from trainprove_nb.exercises import check_answer, check_function

PAGES = [p for p in contents() if p.endswith("/exercises.ipynb")]
CHAPTERS = ("data", "models", "suspects", "evidence", "attribution", "provenance")
CHAPTERS += ("lab", "report", "experiments", "audit")
YOURS = re.compile(r"^(\w+) = \.\.\.  # yours", re.M)


def parts(path):
    "The cells of a page's exercises: (name of the answer, yours, right or wrong, an answer); and the cells in order."
    code = [c for c in cells(ROOT / "nbs" / path) if c.cell_type == "code"]
    found = []
    for at, cell in enumerate(code):
        if named := YOURS.search(cell.source):
            found.append((named[1], at, at + 1, at + 2))
    return found, code


def told(source, space, capsys):
    "Run one cell; what it printed."
    exec(compile(source, "cell", "exec"), space)
    return capsys.readouterr().out


def wrong(answer):
    "Something of the same kind that cannot be right."
    if callable(answer):
        return lambda *given, **named: None
    if isinstance(answer, list | tuple | set):
        return [*answer, "nobody"]
    return f"{answer}, or not" if isinstance(answer, str) else np.asarray(answer) + 0.731


@pytest.mark.parametrize("path", PAGES)
def test_a_page_tells_right_from_wrong(path, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir((ROOT / "nbs" / path).parent)
    exercises, code = parts(path)
    assert 2 <= len(exercises) <= 3
    answer_of = {check: (name, code[answer].source) for name, _, check, answer in exercises}
    space = {}
    for at, cell in enumerate(code):
        line = told(cell.source, space, capsys)
        if at in answer_of:
            name, answer = answer_of[at]
            assert line.startswith("Not answered yet")
            told(answer, space, capsys)
            assert told(cell.source, space, capsys) == "Right.\n", name
            space[name] = wrong(space[name])
            assert re.match("Not yet[.:] .{10}", told(cell.source, space, capsys)), name


@pytest.mark.parametrize("path", PAGES)
def test_answers_are_folded_and_three_things_are_taken_along(path):
    exercises, code = parts(path)
    for _, yours, check, answer in exercises:
        assert "code-fold" not in code[yours].source
        for at, summary in ((check, "Right or wrong?"), (answer, "An answer")):
            assert code[at].source.startswith(f'#| code-fold: true\n#| code-summary: "{summary}"\n')
            assert code[at].metadata["jupyter"] == {"source_hidden": True}
    text = "\n".join(c.source for c in cells(ROOT / "nbs" / path) if c.cell_type == "markdown")
    along = text.partition("## To take along")[2].partition("\n## ")[0]
    assert re.findall(r"^(\d)\. ", along, re.M) == ["1", "2", "3"]
    assert len(re.findall(r"^## \d\. ", text, re.M)) == len(exercises)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_chapter_ends_with_exercises(chapter):
    assert contents(chapter.title())[-1] == f"{chapter}/exercises.ipynb"


@pytest.mark.parametrize(
    "answer, right, within, line",
    [
        (..., 3, 0, "Not answered"),
        (3, 3, 0, "Right."),
        (3.004, 3, 0.005, "Right."),
        (3.006, 3, 0.005, "Not yet. hint"),
        ("3", 3, 0, "Not yet. hint"),
        (None, 3, 0, "Not yet. hint"),
        (float("nan"), 3, 1, "Not yet. hint"),
        ([1, 2], [1, 2], 0, "Right."),
        ([1, 2, 3], [1, 2], 0, "Not yet. hint"),
        (["b", "a"], {"a", "b"}, 0, "Right."),
        (7, {"a"}, 0, "Not yet. hint"),
        ("conf", "conf", 0, "Right."),
        (np.array([True, False]), [True, True], 0, "Not yet. hint"),
    ],
)
def test_answers(answer, right, within, line, capsys):
    check_answer(answer, right, "hint", within)
    assert capsys.readouterr().out.startswith(line)


@pytest.mark.parametrize(
    "answer, line",
    [
        (..., "Not answered"),
        (np.median, "Right."),
        (lambda x: sorted(x)[len(x) // 2], "Not yet. hint"),
        (lambda: 0, "Not yet: it stops with TypeError"),
        (5, "Not yet: it stops with TypeError"),
    ],
)
def test_functions(answer, line, capsys):
    check_function(answer, np.median, [([3, 1, 2],), ([4, 1, 2, 3],)], "hint")
    assert capsys.readouterr().out.startswith(line)
