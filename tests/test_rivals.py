"Others' tests before the same logs: each against a computation by hand, and the shipped table against its rows."

import re
from itertools import product
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.spatial.distance import cdist
from sklearn.linear_model import LogisticRegression
from sklearn.metrics.pairwise import rbf_kernel

from trainprove_nb.attribution.watermark import draw_message, embed
from trainprove_nb.evidence.matching import (
    BANDS,
    Differences,
    answer_distances,
    in_bands,
    in_units,
    kernel_score,
    nearest_score,
    rms_score,
    whitened_score,
    whitening,
)
from trainprove_nb.evidence.rivals import cdi_test
from trainprove_nb.lab.generator_recipes import INNOCENTS, GeneratorRecipes
from trainprove_nb.lab.generator_scales import generator_scale
from trainprove_nb.lab.learnt_trials import learnt_weights, shadow_bands
from trainprove_nb.lab.log_trials import LogPlan, log_trials
from trainprove_nb.lab.rival_trials import conf_of_each, other_scores, swapped
from trainprove_nb.lab.source_trials import (
    LEARNT,
    caption_scores,
    mark_in_answers,
    marked_twins,
    measure_source_rivals,
    source_rival_stages,
)
from trainprove_nb.lab.store import recipe_name
from trainprove_nb.report.results import read_results, shipped_results
from trainprove_nb.report.rivals import (
    _fewest_and_most,
    innocents_by_log,
    plan_rivals,
    rank_scores,
    rivals_alt,
    rivals_figure,
    rivals_sentence,
    side_by_side,
    side_by_side_sentences,
)

RNG = np.random.default_rng(5)


def test_cdi_scores_no_picture_by_what_learnt_from_it():
    "Two folds of a log that is two halves one after the other would be seen: a memory of labels convicts nobody."
    labels = RNG.random(60) < 0.5
    noise = RNG.normal(
        size=(60, 40)
    )  # as many numbers as a classifier needs to learn 60 labels by heart
    fitted = LogisticRegression(C=1e6).fit(noise, labels).decision_function(noise)
    by_heart = stats.ttest_ind(fitted[labels], fitted[~labels], alternative="greater").pvalue
    assert by_heart < 1e-6 < 0.01 < cdi_test(noise, labels)


def test_cdi_accuses_as_often_as_it_says_and_finds_what_is_there():
    def share(learnt, logs):
        found = []
        for _ in range(logs):
            labels = np.arange(90) % 3 == 0
            found.append(cdi_test(RNG.normal(size=(90, 3)) - learnt * labels[:, None], labels))
        return np.mean(np.array(found) <= 0.05)

    assert share(0, 40) <= 0.15 and share(0.6, 10) >= 0.8


def test_cdi_does_not_look_at_units():
    labels, features = np.arange(60) % 3 == 0, RNG.normal(size=(60, 3))
    units = features * [1e-3, 1, 1e3] + [5, 0, -7]
    assert cdi_test(units, labels) == pytest.approx(cdi_test(features, labels), rel=1e-6)


@pytest.mark.parametrize(
    "features, labels, says",
    [
        (np.full((20, 2), np.nan), np.arange(20) < 10, "not a finite number"),
        (np.zeros((20, 2)), np.arange(20) < 4, "4 pictures on a side: 5 folds"),
        (np.zeros((20, 2)), np.arange(20) < 20, "0 pictures on a side"),
    ],
)
def test_cdi_refuses(features, labels, says):
    with pytest.raises(ValueError, match=says):
        cdi_test(features, labels)


def test_distances_are_those_of_the_answers_to_the_same_prompt():
    images, answers = RNG.integers(0, 256, (2, 9, 4, 4, 3)).astype(np.uint8)
    prompts, asked = list("abcabcabc"), list("aabbbcccb")
    found = answer_distances(Differences(images, prompts, answers, asked))
    for image, prompt, row in zip(images, prompts, found, strict=True):
        others = [x for x, text in zip(answers, asked, strict=True) if text == prompt]
        byhand = [np.sqrt((((image / 255) - (x / 255)) ** 2).mean()) for x in others]
        assert row == pytest.approx(byhand, rel=1e-5)


def test_other_scores_are_those_of_scipy_and_sklearn():
    images, answers = RNG.integers(0, 256, (2, 9, 4, 4, 3)).astype(np.uint8)
    prompts, asked = np.array(list("abcabcabc")), np.array(list("aabbbcccb"))
    found = Differences(images, list(prompts), answers, list(asked))
    rows, replies = (x.reshape(9, -1) / 255 for x in (images, answers))
    apart = cdist(rows, replies) / np.sqrt(rows.shape[1])
    mine = prompts[:, None] == asked[None]
    nearest = np.where(mine, apart, np.inf).min(1)
    assert nearest_score(found) == pytest.approx(-nearest, rel=1e-5)
    gamma = 1 / np.median(apart[mine]) ** 2 / rows.shape[1]
    kernel = np.where(mine, rbf_kernel(rows, replies, gamma), 0).sum(1) / mine.sum(1)
    assert kernel_score(found) == pytest.approx(kernel, rel=1e-4)


def test_other_units_are_a_turn_of_both_sides_and_leave_the_first_as_they_were():
    images, answers = RNG.integers(0, 256, (2, 9, 4, 4, 3)).astype(np.uint8)
    found = Differences(images, list("abcabcabc"), answers, list("aabbbcccb"))
    turn = np.linalg.qr(RNG.normal(size=(48, 48)))[0].astype(np.float32)
    turned = in_units(found, turn)
    assert np.stack(turned.pictures) == pytest.approx(found.pictures @ turn)
    for score in (rms_score, nearest_score, kernel_score):  # a turn keeps all distances
        assert score(turned) == pytest.approx(score(found), rel=1e-4)
    each = other_scores(found, turn)
    assert len(each) == 4
    for name in ("nearest answer", "kernel"):
        plain, whitened = each[f"log test, {name}"], each[f"log test, {name}, whitened"]
        assert whitened == pytest.approx(plain, rel=1e-4)


def test_innocents_are_counted_log_by_log():
    kinds = ["disjoint data", "same data", "another account", "infringing", "disjoint data"]
    table = pd.DataFrame(
        {
            "source": ["a"] * 4 + ["b"],
            "account": [0, 0, 0, 0, 1],
            "kind": kinds,
            "access": "prompts only",
            "z": [1.0, 3.0, 9.0, 9.0, -1.0],
            "p": [0.2, 0.05, 0.001, 0.001, 0.8],
        }
    )
    found = innocents_by_log(pd.concat([table, table.assign(access="open weights", z=5.0)]))
    assert found.loc[("a", 0)].tolist() == [2, 2.0, 1.41, 1]
    assert found.loc[("b", 1)][["innocents", "mean z", "accused"]].tolist() == [1, -1.0, 0]


def test_the_swap_goes_over_prompts():
    distances = [RNG.random(3) for _ in range(24)]
    released, block = np.arange(24) % 3 == 0, np.arange(24) // 3
    means = np.array([d.mean() for d in distances]).reshape(8, 3)
    gain = means[:, 1:].mean(1) - means[:, 0]
    ways = np.array(list(product([1, -1], repeat=8))) @ gain
    assert swapped(distances, released, block) == pytest.approx(np.mean(ways >= gain.sum() - 1e-12))


def test_delta0_is_set_without_the_model_that_is_judged():
    near = [np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.5, 0.6, 0.7, 0.8]), np.array([0.35, 0.55])]
    innocent = np.array([True, True, False])
    # Half of an innocent's answers within δ0: .6 for the first, .2 for the second; .4 of both for the third
    assert conf_of_each(near, innocent, fpr=0.5).tolist() == [1, 0, 0.5]
    assert np.isnan(conf_of_each(near[:1], innocent[:1])).all()


def rows(source, kind, scores, rho=0.0, access="conf"):
    who = dict(source=source, kind=kind, rho=rho, access=access)
    return [
        who | dict(score=score, p=np.nan, model=f"{kind} {k}") for k, score in enumerate(scores)
    ]


def test_conf_is_ranked_among_the_innocents_of_other_sources():
    table = [
        *rows("a", "infringing", [0.5], 1.0),
        *rows("a", "same data", [0.9]),
        *rows("b", "other corpus", [0.1, 0.6, 0.5]),
        *rows("b", "infringing", [0.95], 1.0),
    ]
    table += [
        dict(
            source="a",
            kind="same data",
            rho=0.0,
            access="CDI's recipe",
            score=np.nan,
            p=0.3,
            model="m",
        )
    ]
    found = rank_scores(pd.DataFrame(table))
    assert found.p.tolist() == pytest.approx([3 / 4, 1 / 4, 1, 1, 1, 1 / 2, 0.3])
    alone = rank_scores(pd.DataFrame(rows("a", "same data", [0.2, 0.3])))
    assert alone.p.isna().all()


def test_who_learnt_from_the_source_is_no_innocent_to_be_ranked_among():
    table = rows("a", "infringing", [0.5], 1.0) + rows("b", "same data", [0.1, 0.2])
    before = rank_scores(pd.DataFrame(table)).p[0]
    table += rows("b", "another account", [0.9] * 7, 1.0)
    table += rows("b", "same data", [0.9] * 7, access="discriminator, images")
    assert rank_scores(pd.DataFrame(table)).p[0] == before == 1 / 3
    again = pd.DataFrame(table + rows("b", "same data", [0.1, 0.2]))  # before another log
    assert rank_scores(again).p[0] == before


def test_the_shipped_table_counts_its_rows():
    tables = read_results(shipped_results("release"), "release")[1]
    alike = tables[""][tables[""].kind.isin(tables["rivals"].kind)]
    found = side_by_side(alike, tables["rivals"], 0.01)
    cdi = tables["rivals"][tables["rivals"].access == "CDI's recipe"]
    guilty = cdi[(cdi.kind == "infringing") & (cdi.rho == 0.5)]
    assert found.loc["CDI's recipe", 0.5].value == (guilty.p <= 0.01).mean()
    others = cdi.kind == "another account"
    for rows_of, column in (
        (cdi[~others & (cdi.kind != "infringing")], "innocents accused"),
        (cdi[others], "other customers named"),
    ):
        told = f"{(rows_of.p <= 0.01).sum()} of {len(rows_of)}"
        assert found.loc["CDI's recipe", column] == told
    asked = cdi[["source", "account", "kind", "rho", "suspect"]]
    ours = tables[""][(tables[""].access == "open weights") & (tables[""].kind != "same source")]
    ours = ours[asked.columns]
    both = [t.sort_values(list(t)).reset_index(drop=True) for t in (asked, ours)]
    pd.testing.assert_frame_equal(*both)  # the same suspects before the same logs
    assert (
        f"CDI's recipe {found.loc['CDI' + chr(39) + 's recipe', 0.3]}"
        in rivals_sentence(found).data
    )


# A discriminator and a watermark


@pytest.fixture(scope="module")
def asked():
    "A plan of two accounts and three rounds of answers, and a source."
    recipes = GeneratorRecipes(generator_scale("smoke", {"rhos": [0.1, 0.3, 1], "every_rho": True}))
    plan = LogPlan(recipes, accounts=2, repeats=3, denoised=0, restored=0)
    return plan, recipes.sources(["mini-v1-avatars"])[0]


def test_a_twin_differs_from_its_suspect_by_the_mark_alone(asked):
    plan, source = asked
    trials = log_trials(plan.recipes, source, 2)
    guilty = [t for t in trials if t.kind == "infringing"]
    twins = marked_twins(plan.recipes, source, trials)
    assert len(twins) == len(guilty) == 6
    for trial, twin in zip(guilty, twins, strict=True):
        own, marked = trial.model["pairs"]["generated"], twin.model["pairs"]["generated"]
        assert marked["kind"] == "marked" and marked["generated"] == own
        same = {**twin.model, "pairs": {**twin.model["pairs"], "generated": own}}
        assert same == trial.model and (twin.k, twin.rho) == (trial.k, trial.rho)


def test_a_discriminator_learns_from_shadows_of_every_kind_and_judges_others(asked):
    plan, source = asked
    trials = log_trials(plan.recipes, source, 2)
    found = caption_scores(plan, source, "images", trials)
    learnt = found["innocent"] + found["infringing"]
    models = {recipe_name(answers["model"]) for answers in learnt}
    assert not models & {recipe_name(t.model) for t in trials}
    assert len(learnt) == LEARNT * len(models) == len({recipe_name(x) for x in learnt})
    shadows = plan.recipes.scale.shadows
    assert len(found["infringing"]) == LEARNT * 3 * shadows
    assert len(found["innocent"]) == LEARNT * len(INNOCENTS) * shadows
    assert [recipe_name(x["model"]) for x in found["judged"]] == [
        recipe_name(t.model) for t in trials for _ in range(3)
    ]


class Told:
    "A lab in which some models draw marked pictures."

    def __init__(self, plan, source, marking=()):
        message, carriers = plan.recipes.secret(source)
        self.mark = draw_message(message), carriers
        self.marking = {recipe_name(model) for model in marking}

    def array(self, recipe):
        if recipe["kind"] == "scores":
            return np.arange(len(recipe["judged"])) / len(recipe["judged"])
        seed = int(recipe_name(recipe), 16) % 2**32
        drawn = np.random.default_rng(seed).integers(0, 256, (20, 32, 32, 3), np.uint8)
        return embed(drawn, *self.mark) if recipe_name(recipe["model"]) in self.marking else drawn


def test_the_mark_is_read_where_it_is_and_nowhere_else(asked):
    plan, source = asked
    marked, *others = log_trials(plan.recipes, source, 2)
    lab = Told(plan, source, [marked.model])
    assert mark_in_answers(lab, plan, source, marked) < 1e-4
    assert np.mean([mark_in_answers(lab, plan, source, t) <= 0.05 for t in others]) <= 0.2


def test_source_rivals_judge_whoever_is_asked_by_all_rounds_and_twins_by_the_mark(asked):
    plan, source = asked
    trials = log_trials(plan.recipes, source, 2)
    twins = marked_twins(plan.recipes, source, trials)
    table = measure_source_rivals(Told(plan, source, [t.model for t in twins]), plan, source)
    assert (table[table.kind == "infringing"].rho >= plan.least_asked).all()
    images = table[table.access == "discriminator, images"]
    each = images.drop_duplicates("model").score.to_numpy()
    n = 3 * len(each)
    assert each == pytest.approx((3 * np.arange(len(each)) + 1) / n)  # the middle of three rounds
    marks = table[table.access == "watermark"]
    assert (marks.p[marks.kind.isin(["infringing", "another account"])] < 1e-4).all()
    assert set(marks.model[marks.kind == "infringing"]).isdisjoint(images.model)
    both = images[images.rho == 1].groupby("model").account.nunique()
    assert (both == 2).all()  # before their own log and another's
    ours = images[["source", "account", "kind", "rho", "suspect"]]
    theirs = marks[list(ours)]
    left, right = (t.sort_values(list(ours)).reset_index(drop=True) for t in (ours, theirs))
    pd.testing.assert_frame_equal(left, right)


def test_everything_that_is_read_is_made(asked):
    plan, source = asked
    stages = source_rival_stages(plan, source)
    made = {recipe_name(r) for stage in stages.values() for r in stage}
    for scores in stages["scores"]:
        read = [scores["own"], *scores["innocent"], *scores["infringing"], *scores["judged"]]
        assert {recipe_name(r) for r in read} <= made
        assert {recipe_name(r["model"]) for r in read if r["model"]["kind"] != "base"} <= made


def test_bands_are_parts_of_the_score_that_is_kept():
    images = RNG.integers(0, 256, (60, 8, 8, 3)).astype(np.uint8)
    answers = RNG.integers(0, 256, (30, 8, 8, 3)).astype(np.uint8)
    prompts, asked = list("abcdefghij") * 6, list("abcdefghij") * 3
    found = Differences(images, prompts, answers, asked)
    unit = whitening(found.pictures)
    bands = in_bands(found, unit)
    assert bands.shape == (60, BANDS)
    assert bands.sum(1) == pytest.approx(whitened_score(found, unit), abs=1e-6)


def test_weights_go_by_what_tells_and_not_by_units():
    bands, own = RNG.normal(size=(3000, 3)), np.arange(3000) < 1000
    bands[:, 2] += own
    found = learnt_weights(bands, own)
    assert found[2] > 10 * np.abs(found[:2]).max()
    other = learnt_weights(bands * [1, 1, 100], own)
    assert other == pytest.approx(found / [1, 1, 100], rel=1e-3, abs=1e-6)


class Drawn:
    "A lab whose pictures are noise, the same whenever they are asked for."

    def __init__(self, texts):
        self.texts = texts

    def pairs(self, recipe):
        return {"text": self.texts}

    def pictures(self, recipe):
        rng = np.random.default_rng(int(recipe_name(recipe)[:8], 16))
        return rng.integers(0, 256, (len(self.texts), 8, 8, 3)).astype(np.uint8)

    array = pictures


def test_weights_are_learnt_without_the_log_that_they_are_used_on(asked):
    plan, source = asked
    texts = [f"thing {k}" for k in range(12)]
    n = 12 * 4  # a released and a withheld picture of each, for two accounts
    there = SimpleNamespace(
        images=RNG.integers(0, 256, (n, 8, 8, 3)).astype(np.uint8),
        prompts=np.array(texts * 4),
        account=np.arange(n) // 24,
        released=np.arange(n) // 12 % 2 == 0,
        captions=texts,
    )
    there.unit = whitening(Differences(there.images, texts * 4, there.images, texts * 4).pictures)
    bands, own = shadow_bands(Drawn(texts), plan, source, there, 0)
    shadows = plan.recipes.scale.shadows
    assert bands.shape == (shadows * 24, BANDS) and own.sum() == shadows * 12
    mine = there.account == 0
    there.images[mine], there.released[mine] = 0, ~there.released[mine]
    again = shadow_bands(Drawn(texts), plan, source, there, 0)[0]
    assert np.array_equal(again, bands)
    there.images[~mine & ~there.released] //= 2
    assert not np.array_equal(shadow_bands(Drawn(texts), plan, source, there, 0)[0], bands)


def test_the_figure_and_its_text_show_the_table():
    tables = read_results(shipped_results("rivals"), "rivals")[1]
    found = side_by_side(tables[""], tables["rivals"])
    fig = rivals_figure(tables[""], tables["rivals"])
    names = [text.get_text() for text in fig.axes[0].get_yticklabels()]
    assert names == list(found.index)
    drawn = {ax.get_title(): ax.get_lines()[0].get_xdata() for ax in fig.axes}
    for rho in (0.3, 1):
        assert list(drawn[f"infringing, ρ = {rho:g}"]) == [r.value for r in found[rho]]
    for column in ("innocents accused", "other customers named"):
        told = [text.split(" of ") for text in found[column]]
        assert drawn[column] == pytest.approx([int(k) / int(n) for k, n in told])
    first = found.index[0]
    assert f"{first} {found.loc[first, 1].value:.2f}" in rivals_alt(tables[""], tables["rivals"])


def test_what_came_out_names_who_finds_most_and_who_accuses():
    tables = read_results(shipped_results("rivals"), "rivals")[1]
    found = side_by_side(tables[""], tables["rivals"])
    parameters = dict(accounts=2, sources=["a", "b"], scale="mini")
    told = side_by_side_sentences(tables, parameters).data.split("\n- ")[1:]
    assert len(told) == 4
    for point, rho in zip(told, (0.3, 1), strict=False):
        for name, rate in found[rho].items():
            assert (f" {name} ({rate.value:.2f})" in point) == (rate.value > 0.5), name
    for point, column in zip(told[2:], ("innocents accused", "other customers named"), strict=True):
        counts = {name: int(text.split()[0]) for name, text in found[column].items()}
        least, most = min(counts.values()), max(counts.values())
        shown = re.findall(r"(\d+) of \d+ \((.*?)\)", point)
        assert [int(n) for n, _ in shown] == [least, most]
        for n, names in shown:
            assert names == "; ".join(k for k, v in counts.items() if v == int(n))


def test_where_all_methods_agree_none_is_named():
    counts = pd.Series({"one": "1 of 4", "other": "1 of 4"})
    told = _fewest_and_most(counts, "Innocents accused")
    assert told == "**Innocents accused** at level .05: 1 of 4 by every method."


def test_rivals_are_asked_equally():
    "The same suspects before the same logs by every method; of twins the model is another."
    parameters, tables, _ = read_results(shipped_results("rivals"), "rivals")
    who = ["source", "account", "kind", "rho", "suspect"]
    every = pd.concat([tables[""], tables["rivals"]])
    frames = [
        rows[who].sort_values(who).reset_index(drop=True) for _, rows in every.groupby("access")
    ]
    for frame in frames[1:]:
        pd.testing.assert_frame_equal(frame, frames[0])
    assert every.access.nunique() == 13 and parameters["repeats"] == 5


def test_without_names_all_fine_tuned_sources_are_asked(tmp_path):
    asked = dict(scale="mini", knobs={}, sources=None, rhos=[1], accounts=1, m=1, repeats=1)
    names = [s.name for s in plan_rivals(asked, str(tmp_path), str(tmp_path)).sources]
    shipped = read_results(shipped_results("rivals"), "rivals")[0]["sources"]
    assert names == shipped and not {"mini-v1", "mini-v2"} & set(names)
    plain = plan_rivals(asked | {"sources": ["mini-v2"]}, str(tmp_path), str(tmp_path))
    assert [s.name for s in plain.sources] == ["mini-v2"]


def test_what_is_said_of_scores_that_were_dropped():
    parameters, tables, _ = read_results(shipped_results("rivals"), "rivals")
    found = side_by_side(tables[""], tables["rivals"], 0.01)[0.3].map(lambda rate: rate.value)
    kinds = ["nearest answer", "kernel"]
    in_pixels = [found["log test, prompts only, pixels"], *(found[f"log test, {k}"] for k in kinds)]
    kept = found["log test, prompts only"]
    assert max(in_pixels) < kept / 2  # "find fewer in pixels"
    others = [f"log test, {k}, whitened" for k in kinds] + ["log test, learnt from shadows"]
    assert all(abs(found[other] - kept) < 1 / 8 for other in others)  # "as many": one suspect of 8
