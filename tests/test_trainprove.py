"TrainProVe: the paper's test against references, the origin test's promises, classifiers and their adapters, and the pipelines of other kinds."

import json
import math
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
import torch
from scipy import stats

from trainprove_nb.data.corpora import SPLITS, corpus, named
from trainprove_nb.data.pairs import pixels
from trainprove_nb.data.scenes import GROUND
from trainprove_nb.lab.classifier_recipes import FAMILIES, ClassifierRecipes
from trainprove_nb.lab.classifier_scales import (
    CLASSIFIER_SCALES,
    MINI_WORDINGS,
    classifier_scale,
)
from trainprove_nb.lab.classifier_trials import classifier_trials, quality
from trainprove_nb.lab.engine import Lab
from trainprove_nb.models.classifiers import (
    ARCHITECTURES,
    classifier,
    load_classifier,
    logits,
    save_classifier,
    train_classifier,
)
from trainprove_nb.models.mini import mini_transformer
from trainprove_nb.models.pipelines import load_model, save_model
from trainprove_nb.models.sampling import generate
from trainprove_nb.provenance.origin_test import OriginTest
from trainprove_nb.provenance.trainprove import (
    DOMAINS,
    WORDINGS,
    batch_values,
    class_prompts,
    grubbs_critical,
    grubbs_verdict,
    trainprove,
)
from trainprove_nb.suspects.classifiers import (
    CSVClassifier,
    FolderClassifier,
    HTTPClassifier,
    ask_classifier,
)

ANIMALS = ["cat face", "frog", "panda"]


def refused(act, *words, error=ValueError):
    "It fails, and its one sentence has these words."
    with pytest.raises(error) as e:
        act()
    assert all(w in str(e.value) for w in words), str(e.value)
    assert "\n" not in str(e.value)


# The paper's test


@pytest.mark.parametrize(
    "n, value", [(3, 1.1543), (5, 1.7150), (8, 2.1266), (10, 2.2900), (20, 2.7082), (50, 3.1282)]
)
def test_grubbs_critical_values_are_the_published_ones(n, value):
    assert grubbs_critical(n) == pytest.approx(value, abs=2e-3)


def test_the_rule_agrees_with_another_implementation_on_many_cases():
    rng, decided = np.random.default_rng(0), set()
    for _ in range(500):
        n, alpha = int(rng.integers(3, 60)), float(rng.uniform(0.001, 0.3))
        shadow, suspect = (
            rng.normal(0.8, 0.05, n),
            rng.normal(0.8 - rng.uniform(-0.05, 0.3), 0.05, n),
        )
        f = stats.f.isf(
            alpha / n, 1, n - 2
        )  # t² is F with 1 and n - 2 degrees of freedom, and both tails
        critical = (n - 1) * (f / (n * (n - 2 + f))) ** 0.5
        mean = sum(shadow) / n
        G = (mean - sum(suspect) / n) / (sum((a - mean) ** 2 for a in shadow) / (n - 1)) ** 0.5
        verdict = grubbs_verdict(shadow, suspect, alpha)
        assert (
            verdict.G == pytest.approx(G)
            and verdict.critical == pytest.approx(critical)
            and verdict.illegal == (G <= critical)
        )
        decided.add(verdict.illegal)
        assert grubbs_verdict(-shadow, -suspect, alpha, "high").G == pytest.approx(G)
    assert decided == {True, False}


def test_what_the_batches_say_by_hand():
    truth = np.array([0, 0, 1, 1, 0])
    scores = np.array([[2.0, 0], [0, 2], [0, 2], [0, 2], [2, 0]])
    assert batch_values("accuracy", scores, truth, 2).tolist() == [0.5, 1, 1]
    assert batch_values("accuracy", scores.argmax(1), truth, 2).tolist() == [0.5, 1, 1]
    p = 1 / (1 + np.exp(2))
    assert batch_values("entropy", scores, truth, 5)[0] == pytest.approx(
        -p * np.log(p) - (1 - p) * np.log(1 - p)
    )
    # class 0: cosines of (1,2), (1,3), (2,3) are 0, 1, 0; class 1: 1
    assert batch_values("similarity", scores, truth, 5)[0] == pytest.approx((1 / 3 + 1) / 2)


def test_the_verdict_hangs_on_the_batch_size_as_method_says():
    "A suspect 20 points below the shadow, on 5,000 pictures: accused at 16 a batch, cleared at 512."
    rng = np.random.default_rng(0)
    truth = np.zeros(5000, int)
    shadow, suspect = (rng.random(5000) > 0.7).astype(int), (rng.random(5000) > 0.5).astype(int)
    assert (
        trainprove(shadow, suspect, truth, 16).illegal
        and not trainprove(shadow, suspect, truth, 512).illegal
    )


def test_bad_input_of_the_paper_test():
    refused(lambda: grubbs_critical(2), "2 batches", "at least 3")
    refused(lambda: grubbs_critical(5, 1.5), "alpha = 1.5", "between 0 and 1")
    refused(lambda: grubbs_verdict([0.8] * 4, [0.7]), "no spread", "smaller batches")
    refused(lambda: grubbs_verdict([0.8, 0.7, 0.9], []), "the suspect has 0 batches")
    refused(
        lambda: grubbs_verdict([0.8, np.nan, 0.9], [0.7]),
        "the shadow",
        "1 of them without a finite value",
    )
    refused(
        lambda: batch_values("accuracy", np.zeros(4, int), np.zeros(4, int), 0), "batch_size = 0"
    )
    refused(
        lambda: batch_values("entropy", np.zeros(4, int), np.zeros(4, int)),
        "needs scores",
        "accuracy",
    )
    refused(
        lambda: batch_values("loss", np.zeros((4, 2)), np.zeros(4, int)), "'loss'", "similarity"
    )
    refused(
        lambda: batch_values("accuracy", np.zeros(3, int), np.zeros(4, int)),
        "3 answers to 4 pictures",
    )


def test_every_class_gets_every_wording():
    found = class_prompts(WORDINGS["domain"], ["cat", "frog"], 20)
    assert len(found) == 40 and found[0].endswith("cat") and found[20].endswith("frog")
    assert all(found.count(f"a {d} of a {c}") == 2 for d in DOMAINS for c in ("cat", "frog"))


# The origin test

CHANCE = 0.1


def answers(rng, home, ability=1.0, n=400, origins=("mine", "rival", "real"), edge=1.5):
    return {
        o: rng.random(n)
        < 1 - (1 - CHANCE) * np.exp(-ability * (edge if o == home else 1) * rng.lognormal(0, 0.1))
        for o in origins
    }


def shadows(rng, n=400, m=6):
    return {
        o: [answers(rng, o, rng.lognormal(0, 0.5), n) for _ in range(m)]
        for o in ("mine", "rival", "real")
    }


def judged(suspect, known, owner="mine"):
    return OriginTest(known, CHANCE).judge(suspect, owner)


def test_the_p_value_is_that_of_a_discriminant_between_profiles():
    "In coordinates of its own: contrasts of the accuracies, regressed through the origin by least squares."
    rng = np.random.default_rng(0)
    known, suspect = shadows(rng, 4000), answers(rng, "mine", n=4000)
    test = OriginTest(known, CHANCE)
    found, contrasts = test.judge(suspect, "mine"), np.array([[1, -1, 0], [1, 1, -2.0]]).T
    points = {
        o: np.array([[m[k].mean() for k in known] for m in models]) for o, models in known.items()
    }
    at = np.array([suspect[k].mean() for k in known])

    def u(x):
        return (x.mean(-1, keepdims=True) - CHANCE) * (1 - x.mean(-1, keepdims=True))

    beta = {o: np.linalg.lstsq(u(x), x @ contrasts, rcond=None)[0][0] for o, x in points.items()}
    stray = np.concatenate([x @ contrasts - u(x) * beta[o] for o, x in points.items()])
    covariance = stray.T @ stray / (18 - 3)
    for r in ("rival", "real"):
        w = np.linalg.solve(covariance, beta["mine"] - beta[r])
        t = (
            w
            @ (at @ contrasts - u(at) * beta[r])
            / np.sqrt(w @ covariance @ w * (1 + u(at)[0] ** 2 / (u(points[r]) ** 2).sum()))
        )
        assert found.pvalues[r] == pytest.approx(stats.t.sf(t / test.scale("mine"), 15), rel=1e-6)
    assert (
        found.p == max(found.pvalues.values()) == found.pvalues[found.rival]
        and found.accuracies["real"] == suspect["real"].mean()
    )


def test_the_unit_is_what_left_out_shadows_get():
    rng = np.random.default_rng(4)
    known = shadows(rng, 200)
    got = []
    for r in ("rival", "real"):
        for k, one in enumerate(known[r]):
            test = OriginTest({**known, r: known[r][:k] + known[r][k + 1 :]}, CHANCE)
            got.append(stats.t.isf(test.judge(one, "mine").pvalues[r], 17 - 3) * test.scale("mine"))
    assert OriginTest(known, CHANCE).scale("mine") == pytest.approx(
        max(1, np.sqrt(np.mean(np.square(got))))
    )


def test_who_is_beyond_the_shadows_is_said():
    rng = np.random.default_rng(6)
    known = shadows(rng)
    assert judged(answers(rng, "mine", 9.0), known).beyond == ["rival", "real"] and judged(
        known["rival"][0], known
    ).beyond in ([], ["real"])


def test_innocents_are_rarely_accused_and_the_guilty_often():
    rng = np.random.default_rng(1)

    def share(home):
        return np.mean(
            [
                judged(answers(rng, home, rng.lognormal(0, 0.5)), shadows(rng), "mine").p <= 0.05
                for _ in range(150)
            ]
        )

    assert (
        share("rival") <= 0.09 and share("real") <= 0.09
    )  # binomial, 150 trials at .05: above .09 once in a hundred
    assert share("mine") > 0.6


@pytest.mark.parametrize("ability", [0.1, 4.0])
def test_poorer_or_better_than_all_shadows_is_not_thereby_guilty(ability):
    rng = np.random.default_rng(2)
    p = [
        judged(answers(rng, home, ability, 1000), shadows(rng, 1000, 9)).p
        for home in ("rival", "real")
        for _ in range(100)
    ]
    assert np.mean(np.array(p) <= 0.05) <= 0.08


def test_more_pictures_give_more_power():
    def power(n):
        rng = np.random.default_rng(3)
        return np.mean(
            [
                judged(answers(rng, "mine", 1.0, n, edge=1.25), shadows(rng, n), "mine").p <= 0.05
                for _ in range(80)
            ]
        )

    assert power(2000) > power(100) + 0.2


def test_bad_input_of_the_origin_test():
    rng = np.random.default_rng(5)
    known, suspect = shadows(rng), answers(rng, "mine")
    refused(lambda: judged(suspect, known, "yours"), "'yours'", "mine")
    refused(lambda: OriginTest({"mine": known["mine"]}, CHANCE), "no rivals")
    refused(
        lambda: OriginTest({**known, "real": known["real"][:3]}, CHANCE),
        "3 shadows of real",
        "at least 4",
    )
    refused(
        lambda: judged({"mine": suspect["mine"]}, known),
        "the suspect to the validation set of 'rival'",
        "ask everybody",
    )
    refused(
        lambda: judged(answers(rng, "mine", n=30), known),
        "the suspect",
        "30",
        "400",
        "True or False",
    )
    refused(
        lambda: judged({o: x.astype(int) for o, x in suspect.items()}, known),
        "int64",
        "True or False",
    )
    refused(
        lambda: judged(
            suspect, {o: [dict.fromkeys(known, np.arange(400) < 20)] * 4 for o in known}
        ),
        "the shadows of mine",
        "chance",
    )
    refused(
        lambda: judged(
            suspect, {o: [dict.fromkeys(known, np.arange(400) < 200)] * 4 for o in known}
        ),
        "do not differ at all",
    )
    refused(
        lambda: OriginTest({**known, "real": [{"real": m["real"]} for m in known["real"]]}, CHANCE),
        "a shadow of real",
        "'mine'",
    )


# Classifiers


@pytest.fixture(scope="module")
def labelled():
    ds = corpus("emoji", "labelled", 8, classes=ANIMALS)
    return pixels(ds), np.repeat(np.arange(3), 8)


def test_pictures_of_classes_are_those_that_their_captions_name(labelled):
    ds = corpus("emoji", "labelled", 8, classes=ANIMALS)
    assert all(ANIMALS[y] in text for text, y in zip(ds["text"], labelled[1]))
    assert named(
        ["a small cat face on cream", "a scat facet", "A Frog and a cat face", "Cat Face"], ANIMALS
    ).tolist() == [0, -1, 0, 0]
    refused(
        lambda: corpus("emoji", "evaluation", 500, classes=ANIMALS), "'cat face'", "ask for fewer"
    )


@pytest.mark.parametrize("name", list(ARCHITECTURES)[1:5])
def test_each_small_network_learns_saves_and_loads(name, labelled, tmp_path):
    x, y = labelled
    net = train_classifier(
        classifier(name, ANIMALS, seed=1),
        x,
        y,
        epochs=40 if name == "vit" else 15,
        batch_size=8,
        shift=0,
    )
    assert (logits(net, x).argmax(1) == y).mean() > 0.8  # it can at least learn by heart
    save_classifier(net, str(tmp_path))
    assert np.array_equal(logits(load_classifier(str(tmp_path)), x), logits(net, x))
    asked, scores = ask_classifier(FolderClassifier(str(tmp_path), ANIMALS[::-1]), x, ANIMALS[::-1])
    assert np.allclose(scores[:, ::-1], logits(net, x), atol=1e-5)  # found by name, not by number


def test_same_seed_same_weights_and_another_seed_others(labelled):
    def weights(seed):
        return torch.cat(
            [
                p.flatten()
                for p in train_classifier(
                    classifier("resnet", ANIMALS, seed=seed), *labelled, epochs=1, seed=seed
                ).parameters()
            ]
        )

    assert torch.equal(weights(1), weights(1)) and not torch.equal(weights(1), weights(2))


def test_one_step_of_each_loss_is_the_formula(labelled):
    x, y = labelled
    for loss, weight in (("ce", lambda p: 1), ("focal", lambda p: (1 - p) ** 2)):
        net, twin = (classifier("vit", ANIMALS, seed=3).train() for _ in range(2))
        train_classifier(
            net,
            x,
            y,
            epochs=1,
            batch_size=24,
            shift=0,
            loss=loss,
            lr=1e-2,
            weight_decay=0.0,
            seed=0,
        )
        p = twin((torch.tensor(x).permute(0, 3, 1, 2).float() / 127.5 - 1)).logits.softmax(1)[
            torch.arange(24), torch.tensor(y)
        ]
        optimizer = torch.optim.AdamW(twin.parameters(), lr=1e-2, weight_decay=0.0)
        (-weight(p) * p.log()).mean().backward()
        optimizer.step()
        a, b = (torch.cat([q.detach().flatten() for q in m.parameters()]) for m in (net, twin))
        assert (a - b).abs().mean() < 1e-4


def test_bad_input_of_classifiers(labelled, tmp_path):
    x, y = labelled
    refused(lambda: classifier("resnet-19", ANIMALS), "'resnet-19'", "resnet-18")
    refused(
        lambda: train_classifier(classifier("resnet", ANIMALS), x, y, loss="hinge"),
        "'hinge'",
        "focal",
    )
    refused(
        lambda: train_classifier(classifier("resnet", ANIMALS), x, y + 1),
        "labels from 1 to 3",
        "number them from 0 to 2",
    )
    refused(
        lambda: train_classifier(classifier("resnet", ANIMALS), x, y[:5]), "24 images but 5 labels"
    )
    refused(lambda: load_classifier(str(tmp_path)), "no config.json")
    (tmp_path / "config.json").write_text("{}")
    refused(lambda: load_classifier(str(tmp_path)), "could not be loaded")
    net = tmp_path / "net"
    save_classifier(classifier("resnet", ANIMALS), str(net))
    refused(lambda: FolderClassifier(str(net), ["frog", "unicorn"]), "'unicorn'", "cat face")


def test_bad_answers():
    x = np.zeros((4, 8, 8, 3), np.uint8)
    refused(
        lambda: ask_classifier(lambda p: np.array([0, 1, 2, 3]), x, ANIMALS), "label 3", "0 to 2"
    )
    refused(
        lambda: ask_classifier(lambda p: np.array([0, 1]), x, ANIMALS), "2 answers to 4 pictures"
    )
    refused(lambda: ask_classifier(lambda p: np.zeros((4, 5)), x, ANIMALS), "(4, 5)", "(4, 3)")
    refused(lambda: ask_classifier(lambda p: np.full((4, 3), np.nan), x, ANIMALS), "not finite")
    refused(lambda: ask_classifier(lambda p: 1, x, ANIMALS), "1 answers to 4 pictures")


def test_probabilities_are_taken_as_logits():
    p = np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])
    assert np.allclose(
        ask_classifier(lambda x: p, np.zeros((2, 8, 8, 3), np.uint8), ANIMALS)[1], np.log(p)
    )


def test_a_folder_prepares_pictures_as_its_settings_say(labelled, tmp_path):
    x, _ = labelled
    save_classifier(classifier("resnet", ANIMALS), str(tmp_path))
    net, file = load_classifier(str(tmp_path)), tmp_path / "preprocessor_config.json"
    from transformers import AutoImageProcessor

    def expected(mean, sd):
        p = torch.tensor(x).permute(0, 3, 1, 2).float() / 255
        with torch.no_grad():
            return net((p - mean) / sd).logits.numpy()

    usual = json.loads(file.read_text())
    for settings, as_if in (
        ({}, (0.5, 0.5)),
        ({"image_mean": [0.4] * 3, "image_std": [0.2] * 3}, (0.4, 0.2)),
        ({"do_normalize": False}, (0.0, 1.0)),
    ):
        file.write_text(json.dumps({**usual, **settings}))
        assert np.allclose(
            FolderClassifier(str(tmp_path), ANIMALS)(x), expected(*as_if), atol=1e-4
        ), settings
    for settings in (
        {"size": {"height": 64, "width": 64}},
        {
            "image_processor_type": "ConvNextImageProcessor",
            "size": {"shortest_edge": 28},
            "crop_pct": 0.875,
        },
    ):  # enlarged; enlarged and cut
        file.write_text(json.dumps({**usual, **settings}))
        asked = AutoImageProcessor.from_pretrained(str(tmp_path))(
            images=list(x), return_tensors="pt"
        ).pixel_values
        with torch.no_grad():
            assert np.allclose(
                FolderClassifier(str(tmp_path), ANIMALS)(x), net(asked).logits.numpy(), atol=1e-4
            )
        assert asked.shape[2] == (28 if "crop_pct" in settings else 64)
    file.unlink()
    assert np.allclose(FolderClassifier(str(tmp_path), ANIMALS)(x), expected(0.5, 0.5), atol=1e-4)
    file.write_text('{"image_processor_type": "NoSuchProcessor"}')
    refused(
        lambda: FolderClassifier(str(tmp_path), ANIMALS),
        "preprocessor_config.json",
        "image_processor_type",
    )


def test_answers_in_a_table(tmp_path):
    x, table = np.zeros((2, 8, 8, 3), np.uint8), tmp_path / "answers.csv"
    table.write_text("label\nfrog\npanda\n")
    assert ask_classifier(CSVClassifier(str(table), ANIMALS), x, ANIMALS)[0].tolist() == [1, 2]
    table.write_text("panda,frog,cat face\n.1,.7,.2\n1,2,3\n")
    labels, scores = ask_classifier(CSVClassifier(str(table), ANIMALS), x, ANIMALS)
    assert labels.tolist() == [1, 0] and scores[1].tolist() == [3, 2, 1]
    refused(
        lambda: ask_classifier(CSVClassifier(str(table), ANIMALS), x[:1], ANIMALS),
        "2 answers",
        "1 pictures",
    )
    table.write_text("label\nfrog\nunicorn\n")
    refused(lambda: CSVClassifier(str(table), ANIMALS), "answer 1", "'unicorn'")
    table.write_text("panda,frog\n1,2\n")
    refused(lambda: CSVClassifier(str(table), ANIMALS), "'cat face'")
    table.write_text("panda,frog,cat face\n1,2,many\n")
    refused(lambda: CSVClassifier(str(table), ANIMALS), "not a finite number")
    refused(lambda: CSVClassifier(str(tmp_path / "none.csv"), ANIMALS), "no file")
    table.write_text("label\nfrog\npanda\n", encoding="utf-8-sig")  # as Excel saves it
    assert ask_classifier(CSVClassifier(str(table), ANIMALS), x, ANIMALS)[0].tolist() == [1, 2]
    table.write_bytes("label\nbär\n".encode("latin-1"))
    refused(lambda: CSVClassifier(str(table), ANIMALS), "not UTF-8")


@pytest.fixture
def service(monkeypatch):
    "A web service that answers what `say` returns, and counts."
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            code, body = say(len(asked))
            self.send_response(code)
            self.end_headers()
            try:
                self.wfile.write(body)
            except BrokenPipeError:
                pass

        def log_message(self, *_):
            pass

    asked, box = [], {}

    def say(k):
        return box["say"](k)

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", box, asked
    server.shutdown()


def pictures(n):
    return np.arange(n, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 3), np.uint8)


def test_a_service_that_breaks_down_keeps_what_was_gathered(service, tmp_path):
    url, box, asked = service
    x, keep = pictures(4), tmp_path / "kept.jsonl"
    box["say"] = lambda k: (200, json.dumps({"label": "frog"}).encode()) if k <= 2 else (500, b"")
    refused(
        lambda: HTTPClassifier(url, ANIMALS, str(keep), tries=2, pause=0)(x),
        url,
        "2 tries",
        "500",
        "kept.jsonl",
    )
    assert [json.loads(line)["answer"] for line in keep.read_text().strip().splitlines()] == [
        {"label": "frog"}
    ] * 2 and len(asked) == 4
    keep.write_text(keep.read_text() + '\n{"asked": "cut o')  # killed while writing
    box["say"] = lambda k: (200, json.dumps({"label": "panda"}).encode())
    assert HTTPClassifier(url, ANIMALS, str(keep))(x).tolist() == [1, 1, 2, 2] and len(asked) == 6


def test_nothing_that_was_answered_is_asked_again(service, tmp_path):
    "Not even after a line that was cut off, nor in a folder that was not there."
    url, box, asked = service
    box["say"], keep = (
        lambda k: (200, json.dumps({"label": "frog"}).encode()),
        tmp_path / "new" / "kept.jsonl",
    )
    HTTPClassifier(url, ANIMALS, str(keep))(pictures(1))
    keep.write_text(keep.read_text() + '\n5\n{"asked": "cut o')
    for _ in range(2):
        HTTPClassifier(url, ANIMALS, str(keep))(pictures(3))
    assert len(asked) == 3


def test_kept_answers_are_not_taken_for_another_suspects(service, tmp_path):
    url, box, asked = service
    box["say"] = lambda k: (200, json.dumps({"label": "frog"}).encode())
    for suspect, classes in ((url, ANIMALS), (url + "/other", ANIMALS), (url, ANIMALS[::-1])):
        HTTPClassifier(suspect, classes, str(tmp_path / "kept.jsonl"))(pictures(2))
    assert len(asked) == 6


@pytest.mark.parametrize(
    "body, words",
    [
        (b"nonsense", "JSON"),
        (b"{}", "scores"),
        (b'{"scores": {"frog": 1}}', "cat face"),
        (b'{"label": "unicorn"}', "unicorn"),
        (b'{"label": null}', "None"),
        (b'{"scores": {"frog": 1, "panda": NaN, "cat face": 2}}', "finite"),
    ],
)
def test_a_service_that_answers_nonsense_is_asked_again_and_then_left(
    service, tmp_path, body, words
):
    url, box, asked = service
    box["say"] = lambda k: (200, body)
    refused(
        lambda: HTTPClassifier(url, ANIMALS, str(tmp_path / "kept.jsonl"), tries=2, pause=0)(
            pictures(3)
        ),
        words,
        "2 tries",
    )
    assert len(asked) == 2 and not (tmp_path / "kept.jsonl").exists()


def test_a_service_that_mixes_labels_and_scores(service):
    url, box, _ = service
    box["say"] = lambda k: (
        200,
        b'{"label": "frog"}' if k == 1 else b'{"scores": {"frog": 1, "panda": 2, "cat face": 3}}',
    )
    refused(lambda: HTTPClassifier(url, ANIMALS)(pictures(2)), "others with scores")


def test_a_slow_service_and_one_that_is_down(service):
    url, box, _ = service
    box["say"] = lambda k: (time.sleep(1), (200, b"{}"))[1]
    refused(
        lambda: HTTPClassifier(url, ANIMALS, timeout=0.1, tries=1)(
            np.zeros((1, 8, 8, 3), np.uint8)
        ),
        "Timeout",
    )
    refused(
        lambda: HTTPClassifier("http://127.0.0.1:9", ANIMALS, tries=1)(
            np.zeros((1, 8, 8, 3), np.uint8)
        ),
        "Connection",
    )


# Recipes


@pytest.mark.parametrize("wordings", [WORDINGS, MINI_WORDINGS], ids=["paper", "mini"])
def test_no_suspect_learns_from_the_owners_prompts(wordings):
    "Nor is the validation set drawn for those that shadows learn from; and each text names its class once, so that real captions can be read for it."
    said = {use: set(class_prompts(texts, ANIMALS, 60)) for use, texts in wordings.items()}
    for use in ("shadow", "validation"):
        assert all(said[use].isdisjoint(said[other]) for other in said if other != use)
    for texts in wordings.values():
        assert (
            named(class_prompts(texts, ANIMALS, 60), ANIMALS) == np.repeat(range(len(ANIMALS)), 60)
        ).all()


def test_generators_are_asked_in_words_that_they_know(tmp_path):
    save_model(load_model("mini-v1"), tmp_path / "mine")
    said = lambda **knobs: {
        o: tuple(
            ClassifierRecipes(
                classifier_scale("mini", generators=["mini-v1", str(tmp_path / "mine")], **knobs)
            ).pictures(o, "domain")["wordings"]
        )
        for o in ("mini-v1", "mine")
    }
    assert said() == {"mini-v1": MINI_WORDINGS["domain"], "mine": WORDINGS["domain"]}
    assert said(wordings={**WORDINGS, "domain": ["a coin with a {name}"]}) == dict.fromkeys(
        ("mini-v1", "mine"), ("a coin with a {name}",)
    )


def test_mini_wordings_have_a_ground_for_every_text():
    "Without one mini-v2 draws a person where an animal is asked for."
    for texts in MINI_WORDINGS.values():
        tails = [t.rsplit(" on ", 1) for t in texts]
        assert {ground for _, ground in tails} == set(GROUND) and len(set(texts)) == len(
            texts
        ) == math.lcm(len({t for t, _ in tails}), len(GROUND))


def test_nobody_learns_from_what_he_is_asked_about():
    recipes = ClassifierRecipes(classifier_scale("mini", generators=["mini-v1", "mini-v2"]))
    for o in recipes.origins:
        uses = [recipes.pictures(o, use) for use in ("shadow", "validation", *FAMILIES)]
        if o == "real":
            assert len({u["split"] for u in uses}) == 3
        else:
            assert len({(tuple(u["wordings"]), tuple(u["role"])) for u in uses}) == 5
    names = [n for n in SPLITS if n.startswith("labelled")]
    assert all(not set(SPLITS[a]) & set(SPLITS[b]) for a in names for b in SPLITS if a != b)
    models = [t.model for t in classifier_trials(recipes)] + [
        s for o in recipes.origins for s in recipes.shadows(o)
    ]
    assert len({m["training"]["seed"] for m in models}) == len(models)

    def seen(models):
        return {
            json.dumps(p, sort_keys=True)
            for m in models
            for p in m["pairs"].get("parts", [m["pairs"]])
        }

    owners, suspects = (
        seen(s for o in recipes.origins for s in recipes.shadows(o)),
        seen(t.model for t in classifier_trials(recipes)),
    )
    asked = {json.dumps(recipes.pictures(o, "validation"), sort_keys=True) for o in recipes.origins}
    assert not owners & suspects and not (owners | suspects) & asked
    assert all(
        len(seen(recipes.shadows(o))) == 4 for o in recipes.generators
    )  # of four wordings: shadows vary as suspects may
    made = [
        (
            json.dumps(m["pairs"], sort_keys=True)[:2000],
            m["training"]["epochs"],
            m["training"]["lr"],
        )
        for m in recipes.shadows("real")
    ]
    for part in (0, 2):
        assert all(
            len({m[part] for m in made if m[1] == epochs}) > 1 for epochs in {m[1] for m in made}
        ), "wording or rate goes with length: nobody could tell them apart"


def test_mixtures_hold_their_shares_class_by_class(tmp_path):
    recipes, lab = (
        ClassifierRecipes(classifier_scale("smoke", generators=["mini-v1"], classes=ANIMALS[:2])),
        Lab(str(tmp_path)),
    )
    x, y = lab.labelled(recipes.suspect("mini-v1", recipes.training_ways()[0], share=0.5)["pairs"])
    made = {p.tobytes() for p in lab.labelled(recipes.pictures("mini-v1", "name"))[0]}
    assert np.bincount(y).tolist() == [4, 4]
    assert [sum(p.tobytes() in made for p in x[y == c]) for c in (0, 1)] == [2, 2]


def test_every_scale_is_well_formed():
    for name in CLASSIFIER_SCALES:
        classifier_scale(name)
    refused(lambda: classifier_scale("huge"), "'huge'", "smoke")
    refused(lambda: classifier_scale("mini", colour=1), "'colour'", "classes")
    refused(lambda: classifier_scale("mini", suspect_images=500), "500", "80")
    refused(
        lambda: classifier_scale("mini", efforts=[1.0], shadow_architectures=["vit"]),
        "1 shadows",
        "at least 4",
    )
    refused(lambda: classifier_scale("mini", mixtures=[1.0]), "mixtures", "between 0 and 1")
    refused(lambda: classifier_scale("mini", classes=["frog"]), "classes", "at least 2")
    refused(lambda: classifier_scale("mini", losses=["hinge"]), "'hinge'", "focal")
    refused(lambda: classifier_scale("mini", efforts=1), "efforts = 1", "list")
    refused(lambda: classifier_scale("mini", training={"epoch": 3}), "'epoch'", "epochs")
    refused(lambda: classifier_scale("mini", sampling={"stepz": 3}), "'stepz'", "steps")
    refused(lambda: classifier_scale("mini", classes=["frog", "unicorn"]), "'unicorn'", "emoji")
    refused(lambda: classifier_scale("mini", real="emojis"), "'emojis'", "avatars")
    refused(lambda: classifier_scale("mini", lrs=[-1.0]), "rates above 0")
    refused(lambda: classifier_scale("mini", mixtures=[0.001]), "0.001")
    refused(
        lambda: classifier_scale("mini", wordings={"shadow": ["a {name}"]}),
        "wordings",
        "validation",
        "guidance",
    )
    for texts in ([], "a {name}", ["a panda"], ["a {nam}"], ["a {name} {x}"], ["a {name}}"], [5]):
        refused(
            lambda: classifier_scale("mini", wordings={**WORDINGS, "domain": texts}),
            "domain",
            "wordings",
            "{name}",
        )


def test_a_wrong_setting_is_no_acquittal(monkeypatch):
    "Only a test that these answers leave nothing to measure by is void; a batch size of 0 is an error."
    from trainprove_nb.lab import classifier_trials as verdicts

    rng = np.random.default_rng(0)
    said = {
        o: (np.eye(3)[rng.integers(3, size=60)], rng.integers(3, size=60))
        for o in ("mini-v1", "mini-v2", "real")
    }
    monkeypatch.setattr(verdicts, "answers", lambda *_: said)
    recipes = ClassifierRecipes(classifier_scale("smoke"))
    one = [verdicts.Tried("whole", "real", 1.0, ("resnet", 1e-3, "ce", 0, "name"), {})]
    refused(
        lambda: verdicts.paper_verdicts(None, recipes, one, [0], ["accuracy"]), "batch_size = 0"
    )
    refused(lambda: verdicts.paper_verdicts(None, recipes, one, [40], ["accuracy"]), "2 batches")
    said = {
        o: (np.eye(3)[np.zeros(60, int)], np.zeros(60, int)) for o in said
    }  # always right: nothing varies
    found = verdicts.paper_verdicts(None, recipes, one, [10], ["accuracy"])
    assert found.score.isna().all() and not found.accused.any()


def test_quality_of_nobody_guilty_is_said_to_be_unknown():
    import pandas as pd

    found = quality(
        pd.DataFrame(
            dict(
                suspect=range(3),
                owner="mine",
                guilty=[False] * 3,
                accused=[False] * 3,
                score=[0.0] * 3,
            )
        )
    )
    assert (
        np.isnan(found["power"][0])
        and np.isnan(found["AUC"][0])
        and found["false accusations"][0] == 0
    )


def test_intervals_count_suspects_and_not_verdicts():
    "Asking before three owners instead of one, with the same answers, teaches nothing new."
    import pandas as pd

    rng = np.random.default_rng(0)
    one = pd.DataFrame(
        dict(
            suspect=range(40),
            owner="a",
            guilty=np.arange(40) < 15,
            accused=rng.random(40) < 0.4,
            score=rng.normal(size=40),
        )
    )
    once, thrice = (
        quality(one),
        quality(pd.concat([one.assign(owner=o) for o in "abc"], ignore_index=True)),
    )
    for name in once:
        assert np.allclose(once[name], thrice[name], atol=0.005 if name == "AUC" else 1e-8), (
            name
        )  # Newcombe's formula for three of a third is not quite that for one
    guilty = one[one.guilty]
    low, high = stats.binomtest(int(guilty.accused.sum()), 15).proportion_ci(method="exact")
    assert np.allclose(once["power"], (guilty.accused.mean(), low, high))


def test_auc_compares_cases_of_one_owner():
    "Two owners whose scores lie at different levels: each tells all apart."
    import pandas as pd

    table = pd.DataFrame(
        dict(
            suspect=[0, 1, 0, 1],
            owner=["a", "a", "b", "b"],
            guilty=[True, False, False, True],
            accused=False,
            score=[2.0, 1.0, 11.0, 12.0],
        )
    )
    assert quality(table)["AUC"][0] == 1


def test_constant_answers_and_the_share_of_the_guilty():
    import pandas as pd

    from trainprove_nb.lab import classifier_trials as verdicts

    table = pd.DataFrame(
        dict(
            suspect=np.repeat(range(5), 4),
            owner=list("abcd") * 5,
            guilty=np.eye(5, 4, dtype=bool).ravel(),
        )
    )
    shown = verdicts.quality_table(
        {
            "legal": verdicts.constant_verdicts(table),
            "illegal": verdicts.constant_verdicts(table, 1),
        },
        table,
    )
    assert (
        shown.guilty.tolist() == ["0.20", "0.20"]
        and shown.accuracy.str[:4].tolist() == ["0.80", "0.20"]
        and shown.F1.str[:4].tolist() == ["0.00", "0.33"]
    )


def test_a_test_paired_by_picture_sees_which_pictures_were_answered(monkeypatch):
    "Two origins whose classifiers are right equally often, but on other pictures: only a test that looks at the pictures tells them apart."
    from types import SimpleNamespace

    from trainprove_nb.lab import classifier_trials as verdicts

    rng, chances = (
        np.random.default_rng(0),
        {"a": np.tile([0.9, 0.5], 100), "b": np.tile([0.5, 0.9], 100)},
    )

    def model(o):
        return {
            v: (np.eye(2)[(rng.random(200) > chances[o]).astype(int)], np.zeros(200, int))
            for v in "ab"
        }

    made = {o: [model(o) for _ in range(10)] for o in "ab"}
    recipes = SimpleNamespace(
        origins=["a", "b"],
        generators=["a"],
        shadows=made.get,
        scale=SimpleNamespace(classes=["x", "y"]),
    )
    monkeypatch.setattr(verdicts, "answers", lambda lab, recipes, m: m)
    suspects = [SimpleNamespace(model=model(o)) for o in "aaaaabbbbb"]
    found = verdicts.paired_verdicts(None, recipes, suspects)
    assert found.accused.tolist() == [True] * 5 + [False] * 5


def test_a_blend_is_guilty_before_both_owners():
    recipes = ClassifierRecipes(classifier_scale("mini"))
    blends = [t for t in classifier_trials(recipes) if t.kind == "blend"]
    assert len(blends) == 4 * 4 and {(t.origin, t.second) for t in blends} == {
        ("mini-v1", "mini-v2"),
        ("mini-v2", "mini-lcm"),
        ("mini-lcm", "mini-dit"),
        ("mini-dit", "mini-v1"),
    }
    for t in blends:
        assert [p["model"]["name"] for p in t.model["pairs"]["parts"]] == [
            t.origin,
            t.second,
        ] and t.model["pairs"]["n"] == [recipes.scale.suspect_images // 2] * 2
    assert all(
        t.kind != "blend"
        for t in classifier_trials(
            ClassifierRecipes(classifier_scale("mini", generators=["mini-v1"]))
        )
    )


def test_batch_sizes_and_weight_decays_vary_the_suspects():
    paper = ClassifierRecipes(
        classifier_scale("mini", batch_sizes=[32, 64], weight_decays=[0.1, 0.01])
    )
    ways = paper.training_ways()
    assert len(ways) == len(set(ways)) == 4 * 2 * 2 * 4
    made = {
        (m["training"]["batch_size"], m["training"]["weight_decay"])
        for m in (paper.suspect("mini-v1", w) for w in ways)
    }
    assert made == {(b, w) for b in (32, 64) for w in (0.1, 0.01)}


def test_pictures_may_be_drawn_larger_than_they_are_seen():
    recipes = ClassifierRecipes(classifier_scale("mini", size=16, drawn=32))
    drawn = recipes.pictures("mini-v1", "name")
    assert (
        drawn["sampling"]["size"] == 32
        and drawn["size"] == 16
        and recipes.pictures("real", "name")["size"] == 16
    )


# Pipelines of other kinds


def test_a_transformer_pipeline_is_trained_saved_and_asked(tmp_path):
    from trainprove_nb.models.finetune import finetune

    base = load_model("mini-v1")
    pipe = mini_transformer(
        base.tokenizer, base.vae, heads=2, head_width=16, layers=1, text_width=32
    )
    ds = corpus("emoji", "evaluation", 8)
    first, last = (
        l
        for _, l in (
            finetune(pipe, ds, steps=50, batch_size=8, lr=3e-3, train_text=True, seed=1)[0],
            finetune(pipe, ds, steps=50, batch_size=8, lr=3e-3, train_text=True, seed=2)[-1],
        )
    )
    assert last < first
    save_model(pipe, str(tmp_path))
    again = load_model(str(tmp_path))
    a, b = (generate(p, ["a frog on lime"], [3], steps=2) for p in (pipe, again))
    assert (
        type(again).__name__ == "PixArtAlphaPipeline"
        and a.shape == (1, 32, 32, 3)
        and np.abs(a.astype(int) - b).max() <= 2
    )  # saved in half precision


def test_two_stages_are_asked_as_one(tmp_path):
    "A tiny Stable Cascade of its real classes, saved, loaded and asked like any model."
    from diffusers import (
        DDPMWuerstchenScheduler,
        StableCascadeCombinedPipeline,
        StableCascadeUNet,
    )
    from diffusers.pipelines.stable_cascade.pipeline_stable_cascade import PaellaVQModel
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    torch.manual_seed(0)
    tokenizer = load_model("mini-v1").tokenizer

    def text():
        return CLIPTextModelWithProjection(
            CLIPTextConfig(
                bos_token_id=0,
                eos_token_id=1,
                pad_token_id=1,
                hidden_size=32,
                projection_dim=32,
                intermediate_size=37,
                num_attention_heads=4,
                num_hidden_layers=2,
                vocab_size=len(tokenizer),
                max_position_embeddings=tokenizer.model_max_length,
            )
        ).eval()

    prior = StableCascadeUNet(
        conditioning_dim=128,
        block_out_channels=(128, 128),
        num_attention_heads=(2, 2),
        down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1),
        clip_image_in_channels=768,
        switch_level=(False,),
        clip_text_in_channels=32,
        clip_text_pooled_in_channels=32,
    )
    blocks = (("SDCascadeResBlock", "SDCascadeTimestepBlock"),) * 2 + (
        ("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),
    ) * 2
    decoder = StableCascadeUNet(
        in_channels=4,
        out_channels=4,
        conditioning_dim=128,
        block_out_channels=(16, 32, 64, 128),
        num_attention_heads=(-1, -1, 1, 2),
        down_num_layers_per_block=(1,) * 4,
        up_num_layers_per_block=(1,) * 4,
        down_blocks_repeat_mappers=(1,) * 4,
        up_blocks_repeat_mappers=(3, 3, 2, 2),
        block_types_per_layer=blocks,
        switch_level=None,
        clip_text_pooled_in_channels=32,
        dropout=(0.1,) * 4,
    )
    pipe = StableCascadeCombinedPipeline(
        tokenizer=tokenizer,
        text_encoder=text(),
        decoder=decoder,
        scheduler=DDPMWuerstchenScheduler(),
        vqgan=PaellaVQModel(bottleneck_blocks=1, num_vq_embeddings=2),
        prior_prior=prior,
        prior_text_encoder=text(),
        prior_tokenizer=tokenizer,
        prior_scheduler=DDPMWuerstchenScheduler(),
        prior_feature_extractor=None,
        prior_image_encoder=None,
    )
    pipe.save_pretrained(str(tmp_path))
    index = json.loads((tmp_path / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(
        json.dumps({**index, "vqgan": ["wuerstchen", "PaellaVQModel"]})
    )  # as the hub's folder has it
    loaded = load_model(str(tmp_path))
    pictures = generate(loaded, ["a frog", "a panda"], [1, 2], steps=2, size=128)
    assert type(loaded) is StableCascadeCombinedPipeline and pictures.shape == (2, 128, 128, 3)
    assert np.array_equal(
        pictures, generate(loaded, ["a frog", "a panda"], [1, 2], steps=2, size=128)
    )
