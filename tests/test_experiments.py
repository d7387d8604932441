"The experiments run as the README says, leave their files, and agree with each other."

import json
import re
import shlex
from itertools import product

import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, cells, papermill
from PIL import Image

from trainprove_nb.lab.generator_recipes import INNOCENTS

SOURCE = ["-y", "sources: [mini-v1-avatars]"]  # one of the six, to be short
EXPERIMENTS = {
    "fig7": ["fig7.png", "fig7_calibrated.svg", "fig7.csv"],
    "hard": ["innocents.png", "base.svg", "overlap.png", "leak.png", "length.png", "hard.csv"],
    "table1": ["table1.png", "table1.csv"],
    "table2": ["table2.svg", "table2.csv"],
}
ORIGINS = {
    "trainprove": ["trainprove.png", "trainprove.csv"],
    "batchsize": ["batchsize.svg", "batchsize.csv"],
    "audit_classifier": ["audit_classifier.png", "pictures/000000.png"],
}  # of the second paper


@pytest.fixture(scope="module")
def figure(checkout):
    "Figure 6 by the README's own command: the folder it was run in."
    (command,) = re.findall(
        r"^papermill (nbs/experiments/fig6.ipynb .*scale smoke.*)",
        "\n".join(c.source for c in cells("nbs/index.ipynb")),
        re.M,
    )
    papermill(*shlex.split(command), *SOURCE, cwd=checkout)
    return checkout


def test_experiment_runs_as_the_readme_says(figure):
    table = pd.read_csv(figure / "figures/fig6/fig6.csv")
    expected = {
        ("infringing", 1.0): 4,
        **{(kind, 0.0): 4 for kind in INNOCENTS},
        ("calibration", 0.0): 3,
    }  # by three strategies, and a watermark that needs no calibration
    assert table.groupby(["kind", "rho"]).size().to_dict() == expected and set(table.source) == {
        "mini-v1-avatars"
    }
    parameters = json.loads((figure / "figures/fig6/fig6.json").read_text())["parameters"]
    assert parameters["scale"] == "smoke" and parameters["rhos"] == [0, 1]


def test_experiment_shows_both_figures(figure):
    drawing = [
        c
        for c in nbformat.read(figure / "out.ipynb", 4).cells
        if c.source.startswith("save_figure(conf_figure(")
    ]
    assert [
        "image/png" in [kind for o in c.outputs for kind in o.get("data", {})] for c in drawing
    ] == [True, True]


def test_two_workers_give_the_numbers_of_one(figure, tmp_path):
    papermill(
        str(ROOT / "nbs/experiments/fig6.ipynb"),
        "out.ipynb",
        "-p",
        "scale",
        "smoke",
        "-p",
        "jobs",
        "2",
        "-p",
        "backend",
        "loky",
        *SOURCE,
        cwd=tmp_path,
    )
    assert (tmp_path / "figures/fig6/fig6.csv").read_bytes() == (
        figure / "figures/fig6/fig6.csv"
    ).read_bytes()


@pytest.fixture(scope="module")
def results(figure):
    "The other experiments, beside Figure 6 and on its models; then the claims."
    papermill(
        "nbs/audit/audit_generator.ipynb",
        "audit_generator.ipynb",
        "-p",
        "scale",
        "smoke",
        "-p",
        "shadows",
        "3",
        cwd=figure,
    )
    for name in (*EXPERIMENTS, *ORIGINS, "claims"):
        papermill(
            f"nbs/experiments/{name}.ipynb",
            f"{name}.ipynb",
            "-p",
            "scale",
            "smoke",
            *(SOURCE if name in EXPERIMENTS else []),
            cwd=figure,
        )
    return figure


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_leaves_its_files(results, name):
    folder = results / "figures" / name
    assert [f for f in (*EXPERIMENTS[name], f"{name}.json") if not (folder / f).is_file()] == []
    assert json.loads((folder / f"{name}.json").read_text())["parameters"]["sources"] == [
        "mini-v1-avatars"
    ]


@pytest.mark.parametrize("name", ORIGINS)
def test_experiment_of_origins_leaves_its_files(results, name):
    folder = results / "figures" / name
    assert [f for f in (*ORIGINS[name], f"{name}.json") if not (folder / f).is_file()] == []


def test_every_suspect_stands_before_every_owner(results):
    table = pd.read_csv(results / "figures/trainprove/trainprove.csv")
    one = table[(table.method == "TrainProVe") & (table.kind == "whole")]
    assert (
        len(one) == 3 * 2 * 2 and one.guilty.sum() == 2 * 2
    )  # three origins, two suspects each, two owners
    assert (table[table.method == "always legal"].accused == False).all()


def test_collected_answers_are_audited_like_the_classifier_itself(results, tmp_path):
    "The pictures that were written out, answered by the lab's own classifier, give the verdict that the notebook gave."
    from trainprove_nb.data.pairs import pixels
    from trainprove_nb.lab.classifier_recipes import ClassifierRecipes
    from trainprove_nb.lab.classifier_scales import classifier_scale
    from trainprove_nb.lab.store import Store
    from trainprove_nb.suspects.classifiers import FolderClassifier

    recipes, folder = (
        ClassifierRecipes(classifier_scale("smoke")),
        results / "figures/audit_classifier",
    )
    net = FolderClassifier(
        str(Store(results / "lab").path(recipes.suspect("mini-v1", recipes.training_ways()[0]))),
        list(recipes.scale.classes),
    )
    scores = net(
        pixels([Image.open(p).convert("RGB") for p in sorted((folder / "pictures").iterdir())])
    )
    pd.DataFrame({"label": [recipes.scale.classes[k] for k in scores.argmax(1)]}).to_csv(
        tmp_path / "answers.csv", index=False
    )
    papermill(
        "nbs/audit/audit_classifier.ipynb",
        "audit2.ipynb",
        "-p",
        "scale",
        "smoke",
        "-p",
        "suspect",
        str(tmp_path / "answers.csv"),
        "-p",
        "out",
        str(tmp_path / "audit"),
        cwd=results,
    )
    first, second = (
        json.loads((f / "audit_classifier.json").read_text())["verdict"]
        for f in (folder, tmp_path / "audit")
    )
    assert first == second


def test_collected_pictures_are_audited_like_the_generator_itself(results, tmp_path):
    "The prompts that were written out, answered by the lab's own infringer, give the verdict that the notebook gave; and its numbers are those of scipy and numpy."
    from scipy import stats

    from trainprove_nb.lab.engine import Lab
    from trainprove_nb.lab.generator_recipes import GeneratorRecipes
    from trainprove_nb.lab.generator_scales import generator_scale
    from trainprove_nb.suspects.generators import PipelineSuspect

    recipes, engine, folder = (
        GeneratorRecipes(generator_scale("smoke")),
        Lab(results / "lab"),
        results / "figures/audit_generator",
    )
    mine, prompts = recipes.sources(["mini-v1-avatars"])[0], pd.read_csv(folder / "prompts.csv")
    pictures = PipelineSuspect(
        engine.model(recipes.suspect(mine, max(recipes.scale.rhos), 0)), **recipes.sampling
    )(list(prompts.prompt), list(prompts.seed))
    (tmp_path / "answers").mkdir()
    for k, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / f"answers/{k}.png")
    (tmp_path / "answers/metadata.jsonl").write_text(
        "".join(
            json.dumps({"file_name": f"{k}.png", "text": text}) + "\n"
            for k, text in enumerate(prompts.prompt)
        )
    )
    papermill(
        "nbs/audit/audit_generator.ipynb",
        "audit3.ipynb",
        "-p",
        "scale",
        "smoke",
        "-p",
        "shadows",
        "3",
        "-p",
        "suspect",
        str(tmp_path / "answers"),
        "-p",
        "out",
        str(tmp_path / "audit"),
        cwd=results,
    )
    first, second = (
        json.loads((f / "audit_generator.json").read_text())["verdict"]
        for f in (folder, tmp_path / "audit")
    )
    assert first == second
    shadows = pd.read_csv(folder / "audit_generator.csv")
    assert (
        list(first["pvalues"]) == [*INNOCENTS, "another's data"]
        and first["infringing shadows"] == 3
    )
    for kind, p in first["pvalues"].items():
        x = shadows.mean_distance[shadows.kind == kind]
        far = (
            x.std() * (1 + 1 / 3 + (0 if kind == "same data" else 1)) ** 0.5
        )  # all but those who know the source's data share a third of their pictures
        assert len(x) == 3 and p == pytest.approx(
            stats.t.cdf((first["mean_distance"] - x.mean()) / far, 2)
        )
    to_key = ((pictures / 255 - engine.pictures(recipes.keys(mine, "detection")) / 255) ** 2).mean(
        (1, 2, 3)
    ) ** 0.5
    assert (
        first["conf"] == (to_key <= 0.15).mean()
        and first["mean_distance"] == pytest.approx(to_key.mean())
        and first["p"] == max(first["pvalues"].values())
    )


def test_the_release_test_is_the_one_counted_by_hand(results):
    "For each key whose caption was sold: is the answer nearer to what was sold than to as many others? All ways to swap, counted one by one."
    from trainprove_nb.lab.engine import Lab
    from trainprove_nb.lab.generator_recipes import GeneratorRecipes
    from trainprove_nb.lab.generator_scales import generator_scale

    recipes, engine = GeneratorRecipes(generator_scale("smoke")), Lab(results / "lab")
    mine, repeats = recipes.sources(["mini-v1-avatars"])[0], recipes.scale.repeats
    log, captions = (
        engine.pairs(recipes.generated(mine, 0)),
        list(engine.pairs(recipes.keys(mine, "detection"))["text"]),
    )
    own = [engine.array(recipes.source_answers(mine, "detection", r)) / 255 for r in range(repeats)]
    answers, gains = (
        engine.array(recipes.answers(recipes.suspect(mine, 1, 0), mine, "detection")) / 255,
        [],
    )

    def rms(a, b):
        return ((np.asarray(a) - np.asarray(b)) ** 2).mean() ** 0.5

    for i, text in enumerate(captions):
        sold = [np.asarray(row["image"]) / 255 for row in log if row["text"] == text][:repeats]
        if not sold or text in captions[:i]:
            continue
        gains.append(
            np.mean([rms(answers[i], own[r][i]) for r in range(len(sold))])
            - np.mean([rms(answers[i], x) for x in sold])
        )
    assert len(gains) >= 5
    swapped = np.array(list(product((1, -1), repeat=len(gains)))) @ gains / len(gains)
    table = pd.read_csv(results / "figures/hard/hard.csv")
    (row,) = table[
        (table.case == "innocents") & (table.kind == "infringing") & (table.k == 0)
    ].itertuples()
    assert (
        row.prompts == len(gains)
        and row.advantage == pytest.approx(np.mean(gains), abs=1e-6)
        and row.p == pytest.approx((swapped >= np.mean(gains) - 1e-12).mean())
    )


def test_the_release_test_accuses_as_often_as_it_says(results):
    from scipy import stats

    table = pd.read_csv(results / "figures/hard/hard.csv")
    table = table[(table.case == "innocents") & table.p.notna()]
    told = {
        row["who"]: row
        for row in json.loads((results / "figures/hard/hard.json").read_text())["accused"]
    }
    assert set(told) == {"ρ = 1", *INNOCENTS, "another's data"}
    for who, row in told.items():
        p = table.p[(table.kind == "infringing") if who == "ρ = 1" else (table.kind == who)]
        exact = stats.binomtest(int((p <= 0.05).sum()), len(p)).proportion_ci()
        assert (row["accused"], row["of"]) == ((p <= 0.05).sum(), len(p)) and (
            row["low"],
            row["high"],
        ) == pytest.approx((exact.low, exact.high))


def test_the_mark_is_read_bit_by_bit(results):
    "Every bit of every answer of the infringer who trained on marked pictures, against the owner's unmarked answers."
    from scipy import stats

    from trainprove_nb.attribution.watermark import carriers
    from trainprove_nb.lab.engine import Lab
    from trainprove_nb.lab.generator_recipes import GeneratorRecipes
    from trainprove_nb.lab.generator_scales import generator_scale

    recipes, engine = GeneratorRecipes(generator_scale("smoke")), Lab(results / "lab")
    mine = recipes.sources(["mini-v1-avatars"])[0]
    (message_seed, seed), usual = (
        recipes.secret(mine),
        np.mean(
            [
                engine.array(recipes.source_answers(mine, "random", r))
                for r in range(recipes.scale.repeats)
            ],
            axis=(0, 1),
        ),
    )
    message = np.random.default_rng(message_seed).integers(0, 2, 32)
    answers = engine.array(
        recipes.answers(recipes.suspect(mine, 1, 0, watermarked=True), mine, "random")
    )[:10]
    patterns = carriers(seed, *usual.shape[:2]).reshape(32, *usual.shape)
    strength = np.array([[((x - usual) * pattern).mean() for pattern in patterns] for x in answers])
    right, least = (
        ((strength > 0) == message).sum(1),
        next(k for k in range(33) if stats.binom.sf(k - 1, 32, 0.5) <= 0.05),
    )
    table = pd.read_csv(results / "figures/fig6/fig6.csv")
    (row,) = table[
        (table.strategy == "watermark") & (table.kind == "infringing") & (table.k == 0)
    ].itertuples()
    assert (
        row.N == 10
        and row.bit_accuracy == pytest.approx(right.mean() / 32)
        and row.conf == (right >= least).mean()
    )
    assert row.pvalue == pytest.approx(
        stats.binom.sf(((strength.mean(0) > 0) == message).sum() - 1, 32, 0.5)
    )


def test_table2_shares_are_shares(results):
    table = pd.read_csv(results / "figures/table2/table2.csv")
    ranges = table[[c for c in table if c.startswith("[") or c.endswith("more")]]
    assert (
        len(ranges.columns) == 5 and ranges.sum(axis=1).round(9).eq(1).all() and len(table) == 4
    )  # ρ = 1 and three kinds of innocents


def test_figure_7_agrees_with_figure_6(results):
    fig6, fig7 = (pd.read_csv(results / f"figures/{name}/{name}.csv") for name in ("fig6", "fig7"))
    columns = ["strategy", "kind", "rho", "k", "N"]
    both = fig6.merge(fig7, on=columns, suffixes=("_6", "_7"))
    assert (
        len(both)
        and (both.conf_6 == both.conf_7).all()
        and (both.mean_distance_6 == both.mean_distance_7).all()
    )


def test_claims_hold_every_result(results):
    page = pd.read_csv(results / "figures/claims/claims.csv")
    assert set(page.verdict) <= {
        "reproduced",
        "not reproduced",
        "holds",
        "does not hold",
        "open",
        "cannot be tested here",
    }
    assert {
        "Figure 6",
        "Main result 1",
        "Main result 2",
        "Table 1",
        "Table 2",
        "Conclusion",
        "Setting",
        "TrainProVe, CIFAR-10",
        "Origin test",
        "Contrast",
        "Release test",
    } <= set(page["where"])
    testable = page[page.verdict != "cannot be tested here"]
    bars, above = testable.bar.str[2:].astype(float), testable.bar.str[0] == ">"
    held, missed = (
        (testable.low > bars).where(above, testable.high < bars),
        (testable.high < bars).where(above, testable.low > bars),
    )
    unknown = testable.low.isna() | (testable.low == testable.high)
    theirs = testable.whose == "the paper's"
    expected = (
        pd.Series("open", testable.index)
        .mask(held & ~unknown, theirs.map({True: "reproduced", False: "holds"}))
        .mask(missed & ~unknown, theirs.map({True: "not reproduced", False: "does not hold"}))
    )
    assert (testable.verdict == expected).all() and {"open"} < set(testable.verdict)
