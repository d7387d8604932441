"Suspect classifiers: their names, tables, services and files, and whether their answers make sense."

import base64
import io
import json
import socket
import sys
import threading
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import ANIMALS, pictures, refused
from PIL import Image
from safetensors.torch import load_file, save_file

from trainprove_nb.models.classifiers import classifier, load_classifier, logits, save_classifier
from trainprove_nb.suspects.answer_tables import CSVClassifier, picture_names, read_table
from trainprove_nb.suspects.class_names import (
    as_logits,
    class_numbers,
    class_places,
    our_scores,
    ranked_answers,
)
from trainprove_nb.suspects.classifier_files import (
    FolderClassifier,
    ONNXClassifier,
    Preparation,
    check_model_file,
)
from trainprove_nb.suspects.classifier_services import HTTPClassifier
from trainprove_nb.suspects.classifiers import ask_classifier, check_sense, open_classifier
from trainprove_nb.suspects.patience import Pace

# Names


@pytest.mark.parametrize(
    "theirs, places",
    [
        (["panda", "cat face", "frog"], [[1], [2], [0]]),
        (["Panda", "CAT_FACE", "tree", " frog "], [[1], [3], [0]]),
        (["cat-face", "frog", "Frog", "panda"], [[0], [1], [3]]),  # letter by letter comes first
        (["n02 x", "n01639765 frog", "n02510455 giant panda, panda", "n02123045 cat face"], None),
        (["LABEL_2", "LABEL_0", "LABEL_1"], [[1], [2], [0]]),
        (["0", "1", "2"], [[0], [1], [2]]),
    ],
)
def test_classes_are_found_by_name(theirs, places):
    assert class_places(theirs, ANIMALS) == (places or [[3], [1], [2]])


def test_digits_that_are_names_are_no_order():
    assert class_places(["0", "1", "2"], ["2", "0"]) == [[2], [0]]
    assert class_places(["0", "1"], ["1", "0"]) == [[1], [0]]
    assert class_numbers(["1", "0"], ["1", "0"]).tolist() == [0, 1]


def test_what_an_owner_says_wins():
    theirs = ["tabby", "tiger cat", "frog", "panda", "cat face"]
    mapping = {"tabby": "cat face", 1: "cat face"}
    assert class_places(theirs, ANIMALS, mapping) == [[0, 1], [2], [3]]
    assert class_places(
        ["frog", "panda"], ["frog", "panda"], {"frog": "panda", "panda": "frog"}
    ) == [
        [1],
        [0],
    ]
    assert class_numbers(["frog"], ANIMALS, {"frog": "panda"}).tolist() == [2]
    refused(lambda: class_places(theirs, ANIMALS, {"tabby": "cat"}), "'tabby' to 'cat'", "frog")
    refused(lambda: class_places(theirs, ANIMALS, {"lynx": "cat face"}), "'lynx'", "tiger cat")


@pytest.mark.parametrize(
    "theirs, says",
    [
        (["crane", "frog", "panda", "crane", "cat face"], None),
        (["dog", "frog", "panda"], ("'cat face'", "dog, frog, panda", "cat face, frog, panda")),
        (["Cat_Face", "cat face ", "CAT FACE", "frog", "panda"], None),
        (
            ["FROG", "Frog", "panda", "cat face"],
            ("2 classes .* 'frog'", "0: FROG, 1: Frog", "mapping"),
        ),
        (["LABEL_0", "LABEL_1"], ("'cat face'", "LABEL_0")),
        (["LABEL_1", "LABEL_2", "LABEL_3"], ("'cat face'", "LABEL_3")),
        ([f"dog {k}" for k in range(1000)], ("dog 7 ... .1,000 in all", "cat face, frog, panda")),
    ],
)
def test_names_that_are_not_understood_are_asked_about(theirs, says):
    if says is None:  # what is doubtful here is no class of ours, or one reading comes first
        class_places(theirs, ANIMALS)
    else:
        refused(lambda: class_places(theirs, ANIMALS, who="x.onnx"), r"x\.onnx", *says)


def test_two_of_ours_are_not_one_of_theirs():
    refused(
        lambda: class_places(["cougar, puma", "frog"], ["puma", "cougar"]), "'puma' and 'cougar'"
    )


def test_labels_that_are_none_of_ours():
    refused(
        lambda: class_numbers(["frog", "newt", "newt", "eft"], ANIMALS, who="t.csv"),
        r"answer 1 of t\.csv is 'newt'",
        r"2 names \(newt, eft\)",
        "cat face, frog, panda",
        "mapping",
    )
    refused(lambda: class_numbers(["0", "3"], ANIMALS), "'0'|'3'")
    assert class_numbers([2, 0, 2], ANIMALS).tolist() == [2, 0, 2]
    assert class_numbers(["label_1", "LABEL 2"], ANIMALS).tolist() == [1, 2]


def test_scores_of_ours_are_sums_of_probabilities():
    "Against softmax by hand, for logits and for probabilities."
    z = np.random.default_rng(0).normal(size=(20, 5))
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    places = [[4, 1], [0]]
    expected = np.log(np.stack([p[:, 4] + p[:, 1], p[:, 0]], 1))
    assert np.allclose(our_scores(p, places), expected)
    difference = our_scores(z, places) - expected  # the same up to a number for each picture
    assert np.allclose(difference[:, 0], difference[:, 1])
    assert np.array_equal(our_scores(z, [[2], [0]]), z[:, [2, 0]])
    assert np.array_equal(as_logits(z), z) and np.allclose(as_logits(p), np.log(p))
    for rounded in p.round(2):  # as a service sends them, one by one
        assert np.allclose(as_logits(rounded[None]), np.log(rounded[None].clip(1e-12)))


def test_ranked_answers():
    likely = {"Frog": 0.5, "cat face": 0.25, "panda": 0.05, "newt": 0.2}
    scores = ranked_answers([likely, likely], ANIMALS)
    assert np.allclose(scores, np.array([[0.25, 0.5, 0.05]] * 2) / 0.8)
    few = {"newt": 0.6, "panda": 0.3, "toad": 0.1}
    assert ranked_answers([likely, few], ANIMALS).tolist() == [1, 2]
    assert ranked_answers([few], ANIMALS, {"newt": "frog"}).tolist() == [1]
    both = {"newt": 0.3, "eft": 0.3, "panda": 0.4}  # together likelier than the panda
    assert ranked_answers([both], ANIMALS, {"newt": "frog", "eft": "frog"}).tolist() == [1]
    refused(lambda: ranked_answers([{"newt": 0.9}], ANIMALS), "'newt'", "cat face, frog, panda")
    refused(lambda: ranked_answers([{"frog": np.nan}], ANIMALS), "not a finite number")


# Tables

X = np.zeros((6, 8, 8, 3), np.uint8)
TRUE = [1, 0, 2, 2, 1, 0]


def answers(seed=0):
    "Six answers by file, in any order."
    rows = pd.DataFrame({"file_name": picture_names(6), "label": [ANIMALS[k] for k in TRUE]})
    return rows.sample(frac=1, random_state=seed)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize(
    "files, labels",
    [
        ("file", "label"),
        ("File Name", "Prediction"),
        ("filename", "class_name"),
        ("PATH", "predicted_label"),
        ("image", "pred"),
    ],
)
def test_tables_are_matched_by_file(tmp_path, separator, files, labels):
    table = tmp_path / "t.csv"
    rows = answers().rename(columns={"file_name": files, "label": labels})
    rows.to_csv(table, sep=separator, index=separator == ",")  # with and without pandas's index
    assert CSVClassifier(table, ANIMALS)(X).tolist() == TRUE
    rows.to_parquet(tmp_path / "t.parquet")
    assert CSVClassifier(tmp_path / "t.parquet", ANIMALS)(X).tolist() == TRUE


@pytest.mark.parametrize(
    "spelt", ["pictures/{}.png", "C:\\my pictures\\{}.PNG", "{}", "{}.jpg", "http://x/{}.png"]
)
def test_a_file_counts_without_folder_and_ending(tmp_path, spelt):
    rows = answers()
    rows["file_name"] = [spelt.format(Path(f).stem) for f in rows.file_name]
    rows.to_csv(tmp_path / "t.csv", index=False)
    assert CSVClassifier(tmp_path / "t.csv", ANIMALS)(X).tolist() == TRUE
    rows["file_name"] = [
        int(Path(f).stem) for f in answers().file_name
    ]  # as a spreadsheet leaves it
    rows.to_parquet(tmp_path / "t.parquet")
    assert CSVClassifier(tmp_path / "t.parquet", ANIMALS)(X).tolist() == TRUE


def test_scores_by_file(tmp_path):
    table, scores = tmp_path / "t.csv", np.random.default_rng(0).normal(size=(6, 3)).round(3)
    rows = pd.DataFrame(scores, columns=["Cat_Face", "frog", "PANDA"]).assign(
        file=picture_names(6), note="x"
    )
    rows.sample(frac=1, random_state=1).to_csv(table, index=False)
    assert np.array_equal(CSVClassifier(table, ANIMALS)(X), scores)
    rows.iloc[::-1].to_csv(table, index=False, sep=";", decimal=",")
    assert np.array_equal(CSVClassifier(table, ANIMALS)(X), scores)
    both = CSVClassifier(
        table, ["cat face", "animal"], mapping={"frog": "animal", "PANDA": "animal"}
    )
    assert np.allclose(both(X)[:, 1], np.logaddexp(scores[:, 1], scores[:, 2]))


def test_labels_with_scores_over_several_rows(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text(
        "file,label,score\n0,newt,.6\n1,frog,.1\n0,panda,.4\n1,cat face,.9\n", encoding="utf-8-sig"
    )
    assert CSVClassifier(table, ANIMALS)(X[:2]).tolist() == [2, 0]
    table.write_text("file,label,score\n1,frog,.1\n0,panda,.4\n")
    assert CSVClassifier(table, ANIMALS)(X[:2]).tolist() == [2, 1]
    table.write_text("file,label,score\n0,frog,.1\n0,frog,.4\n")
    refused(lambda: CSVClassifier(table, ANIMALS), "same label twice")


def test_only_without_names_of_files_order_counts_and_that_is_said(tmp_path):
    table = tmp_path / "t.csv"
    rows = pd.DataFrame({"label": [ANIMALS[k] for k in TRUE]})
    rows.to_csv(table, index=False)
    with pytest.warns(UserWarning, match="no column file_name.*order"):
        assert CSVClassifier(table, ANIMALS)(X).tolist() == TRUE
    answers().to_csv(table, index=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CSVClassifier(table, ANIMALS)(X)


def test_names_of_ones_own_files(tmp_path):
    (tmp_path / "t.csv").write_text("image,answer\ndog.png,frog\ncat.png,panda\nother.png,frog\n")
    suspect = CSVClassifier(tmp_path / "t.csv", ANIMALS, files=["cat.png", "dog.png"])
    assert suspect(X[:2]).tolist() == [2, 1]
    refused(lambda: suspect(X), "2 files for 6 pictures")


FAULTS = {
    "missing": ("file,label\n0,frog\n", "no answer to 000001.png", "1 of 2"),
    "double": ("file,label\n0,frog\n1,frog\n01.png,frog\n", "2 rows for 1", "leave one"),
    "double scores": ("file,cat face,frog,panda\n0,1,2,3\n0,1,2,3\n1,1,2,3\n", "2 rows for 0"),
    "two answers": ("file,label,prediction\n0,frog,frog\n1,frog,frog\n", "label, prediction"),
    "other columns": ("bild;klasse\n0;frog\n1;frog\n", "no column label", "bild, klasse", "panda"),
    "a class too few": ("file,frog,panda\n0,1,2\n1,1,2\n", "'cat face'"),
    "no number": ("file,cat face,frog,panda\n0,1,2,many\n1,1,2,3\n", "not a finite", "many"),
    "not finite": ("file,cat face,frog,panda\n0,1,2,inf\n1,1,2,3\n", "not a finite"),
    "short row": ("file,label\n0,frog\n1\n", "row 2", "1 cells", "2 columns"),
    "long row": ("file,label\n0,frog,x\n1,frog\n", "row 1", "3 cells"),
    "same column": ("file,label,label\n0,frog,frog\n", "two columns 'label'"),
    "no file": ("file,label\n,frog\n1,frog\n", "row 1", "names no file"),
    "no label": ("file,label\n0,\n1,frog\n", "''", "cat face, frog, panda"),
    "no rows": ("file,label\n", "empty"),
    "nothing": ("", "empty"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_tables_with_a_fault(tmp_path, fault):
    text, *says = FAULTS[fault]
    (tmp_path / "t.csv").write_text(text)
    refused(lambda: CSVClassifier(tmp_path / "t.csv", ANIMALS)(X[:2]), r"t\.csv", *says)


def test_tables_that_cannot_be_read(tmp_path):
    (tmp_path / "t.parquet").write_bytes(b"PAR1 no")
    refused(lambda: read_table(tmp_path / "t.parquet"), r"t\.parquet", "could not be read", "again")
    (tmp_path / "t.csv").write_bytes("file,label\n0,bär".encode("utf-16"))
    refused(lambda: read_table(tmp_path / "t.csv"), "not UTF-8")
    refused(lambda: read_table(tmp_path / "no.csv"), r"no file .*no\.csv")


def test_a_class_that_is_called_like_a_column(tmp_path):
    (tmp_path / "t.csv").write_text("file,image,score\n1,5,1\n0,1,5\n")
    assert CSVClassifier(tmp_path / "t.csv", ["image", "score"])(X[:2]).tolist() == [[1, 5], [5, 1]]


# Services


@pytest.fixture
def service(monkeypatch):
    "A service on this machine: its address, a list with what it answers to a picture, what it was asked."
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            picture = Image.open(io.BytesIO(base64.b64decode(next(iter(asked[-1].values())))))
            reply = json.dumps(manner[0](picture.getpixel((0, 0))[0])).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *_):
            pass

    manner, asked, server = [None], [], ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", manner, asked
    server.shutdown()
    server.server_close()


def greys(n):
    "Plain pictures, the k-th of grey k."
    return np.arange(n, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)


P = np.array([[0.2, 0.5, 0.3], [0.7, 0.1, 0.2], [0.1, 0.1, 0.8]])
NAMES = ["Cat_Face", "frog", "PANDA"]


def ranked(k, score="score"):
    return [{"label": n, score: p} for n, p in zip(NAMES, P[k], strict=True)]


MANNERS = {
    "label": lambda k: {"label": NAMES[P[k].argmax()], "score": 0.9},
    "bare label": lambda k: {"label": f"LABEL_{P[k].argmax()}"},
    "scores": lambda k: {"scores": dict(zip(NAMES[::-1], P[k][::-1], strict=True))},
    "list": ranked,
    "nested list": lambda k: [ranked(k)[::-1]],
    "predictions": lambda k: {"predictions": ranked(k, "probability")},
    "probabilities": lambda k: {"probabilities": P[k].tolist()},
    "logits": lambda k: {"logits": [np.log(P[k]).tolist()]},
    "numbers": lambda k: np.log(P[k]).tolist(),
    "text numbers": lambda k: {"scores": {n: str(p) for n, p in zip(NAMES, P[k], strict=True)}},
}


@pytest.mark.parametrize("manner", MANNERS)
def test_every_manner_of_answering(service, manner):
    url, manners, asked = service
    manners[0] = MANNERS[manner]
    labels, scores = ask_classifier(HTTPClassifier(url, ANIMALS, tries=1), greys(3), ANIMALS)
    assert labels.tolist() == [1, 0, 2] and len(asked) == 3
    assert (scores is None) == ("label" in manner)
    if scores is not None:
        assert np.allclose(scores, np.log(P))


def test_the_likeliest_few(service):
    "Labels as soon as one picture has not all classes; names that are not ours are passed over."
    url, manners, _ = service
    manners[0] = lambda k: [{"label": "newt", "score": 0.9}] * (k == 1) + ranked(k)[: 3 - (k == 2)]
    labels, scores = ask_classifier(HTTPClassifier(url, ANIMALS), greys(3), ANIMALS)
    assert labels.tolist() == [1, 0, 0] and scores is None


def test_numbers_in_an_order_of_their_own(service):
    url, manners, _ = service
    manners[0] = lambda k: [5.0 * (k == 1), 0.0, 5.0 * (k == 0), 5.0 * (k == 2)]
    names = ["frog", "newt", "cat face", "Panda"]
    assert HTTPClassifier(url, ANIMALS, names=names)(greys(3)).argmax(1).tolist() == [0, 1, 2]
    refused(
        lambda: HTTPClassifier(url, ANIMALS, tries=1)(greys(3)), "4 numbers for 3 classes", "names"
    )


def test_answers_are_kept_for_one_mapping(service, tmp_path):
    url, manners, asked = service
    manners[0] = lambda k: {"label": "newt"}
    keep = str(tmp_path / "kept.jsonl")
    for mapping, expected in (({"newt": "frog"}, 1), ({"newt": "panda"}, 2), ({"newt": "frog"}, 1)):
        suspect = HTTPClassifier(url, ANIMALS, keep, tries=1, mapping=mapping)
        assert suspect(greys(2)).tolist() == [expected] * 2
    assert len(asked) == 4  # the third time nothing
    refused(lambda: HTTPClassifier(url, ANIMALS, keep, tries=1)(greys(1)), "'newt'", "cat face")


def test_ranked_answers_are_kept(service, tmp_path):
    url, manners, asked = service
    manners[0] = lambda k: ranked(k)[:2]
    for _ in range(2):
        suspect = HTTPClassifier(url, ANIMALS, str(tmp_path / "kept.jsonl"), field="inputs")
        assert suspect(greys(2)).tolist() == [1, 0]
    assert len(asked) == 2 and list(asked[0]) == ["inputs"]


def test_several_at_once_and_a_budget(service):
    url, manners, asked = service
    manners[0] = lambda k: ranked(k % 3)
    many = greys(15)
    found = HTTPClassifier(url, ANIMALS, pace=Pace(at_once=4))(many)
    assert np.allclose(found, np.tile(P, (5, 1))) and len(asked) == 15
    refused(lambda: HTTPClassifier(url, ANIMALS, pace=Pace(budget=2))(many), "budget of 2")


@pytest.mark.parametrize(
    "reply, says",
    [
        (5, "neither a label nor scores"),
        (None, "neither"),
        ([], "0 numbers"),
        ([{"label": "frog"}], "score"),
        ([{"label": "frog", "score": None}], "TypeError|number"),
        ([{"label": "frog", "score": float("nan")}], "finite"),
        ({"logits": [1, 2, float("inf")]}, "finite"),
        ({"logits": [1, 2, "many"]}, "many"),
        ({"error": "busy"}, "scores"),
        ([{"label": "newt", "score": 1.0}], "'newt'"),
        ({"scores": {"frog": 1, "newt": 2}}, "'cat face'"),
    ],
)
def test_replies_that_are_no_answer(service, reply, says):
    url, manners, asked = service
    manners[0] = lambda k: reply
    refused(lambda: HTTPClassifier(url, ANIMALS, tries=2, pause=0)(greys(1)), url, "2 tries", says)
    assert len(asked) == 2


def test_manners_are_not_mixed(service):
    url, manners, _ = service
    manners[0] = lambda k: {"label": "frog"} if k else ranked(k)
    refused(lambda: HTTPClassifier(url, ANIMALS)(greys(2)), "others with scores")


# Folders


@pytest.fixture(scope="module")
def net():
    "A small network with some weights."
    return classifier("resnet", ANIMALS).eval()


@pytest.fixture
def folder(net, tmp_path):
    save_classifier(net, str(tmp_path / "net"))
    return tmp_path / "net"


def edited(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_names_in_a_folder_are_mapped(net, folder):
    x = pictures(5, 32)
    z = logits(net, x)
    edited(folder / "config.json", id2label={0: "tabby", 1: "Tree_Frog", 2: "PANDA"}, label2id=None)
    refused(lambda: FolderClassifier(folder, ANIMALS), "'cat face'", "tabby, Tree_Frog, PANDA")
    named = FolderClassifier(folder, ["panda", "tree frog"])(x)
    assert np.allclose(named, z[:, [2, 1]], atol=1e-5)
    mapped = FolderClassifier(folder, ["cat", "panda"], mapping={"tabby": "cat", 1: "cat"})(x)
    assert np.allclose(mapped, np.stack([np.logaddexp(z[:, 0], z[:, 1]), z[:, 2]], 1), atol=1e-5)


def test_preparation_is_asked_for_where_a_folder_does_not_say(net, folder):
    x = pictures(5, 32)
    (folder / "preprocessor_config.json").unlink()
    refused(lambda: FolderClassifier(folder, ANIMALS), "how pictures are prepared", "prepare=")
    prepare = dict(size=32, mean=[0.5] * 3, std=[0.5] * 3)
    found = FolderClassifier(folder, ANIMALS, prepare=prepare)(x)
    assert np.allclose(found, logits(net, x), atol=1e-5)
    assert not np.allclose(
        FolderClassifier(folder, ANIMALS, prepare=prepare | {"mean": [0, 0, 0]})(x), found
    )


@pytest.mark.parametrize("crop, size", [(1.0, 24), (0.875, 28), (1.0, 48), (0.875, 224)])
def test_preparation_is_what_transformers_does(crop, size):
    "Against its ConvNeXt processor, which resizes by a crop's share and cuts the middle."
    from transformers import ConvNextImageProcessor

    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    theirs = ConvNextImageProcessor(
        size={"shortest_edge": size}, crop_pct=crop, resample=2, image_mean=mean, image_std=std
    )
    x = pictures(3, 32)
    expected = theirs(images=list(x), return_tensors="np")["pixel_values"]
    found = Preparation(size, mean, std, crop)(x)
    assert found.shape == expected.shape == (3, 3, size, size)
    assert np.abs(found - expected).mean() < 0.01 and np.abs(found - expected).max() < 0.05


@pytest.mark.parametrize(
    "wrong",
    [
        dict(size=0),
        dict(size="32"),
        dict(mean=[0.5]),
        dict(std=[1, 1, 0]),
        dict(mean=0.5),
        dict(crop=0),
        dict(crop=1.2),
        dict(resample="best"),
        dict(colour="grey"),
    ],
)
def test_preparations_that_cannot_be(folder, wrong):
    prepare = dict(size=32, mean=[0.5] * 3, std=[0.5] * 3) | wrong
    refused(lambda: FolderClassifier(folder, ANIMALS, prepare=prepare), "cannot be", "size")


def without_head(weights):
    return {k: w for k, w in weights.items() if not k.startswith("classifier")}


def renamed(weights):
    return {f"module.{k}": w for k, w in weights.items()}


def one_missing(weights):
    return {k: w for k, w in weights.items() if "stages.1.layers.0.shortcut.convolution" not in k}


def one_more(weights):
    return weights | {"resnet.encoder.stages.2.layers.1.layer.0.convolution.weight": torch.ones(2)}


def one_renamed(weights):
    return {k.replace("classifier.1.bias", "head.bias"): w for k, w in weights.items()}


@pytest.mark.parametrize("spoil", [without_head, renamed, one_missing, one_more, one_renamed])
def test_a_network_that_is_not_whole_is_not_judged(folder, spoil):
    file = folder / "model.safetensors"
    save_file(spoil(load_file(file)), file, metadata={"format": "pt"})
    refused(
        lambda: FolderClassifier(folder, ANIMALS), "weights", "the first", "copy it|config.json"
    )


def test_counts_that_a_file_need_not_have(folder, net):
    "What torch counts besides the weights is neither missed nor held against a file."
    file = folder / "model.safetensors"
    weights = load_file(file)
    kept = {k: w for k, w in weights.items() if not k.endswith("num_batches_tracked")}
    assert len(kept) < len(weights)
    save_file(weights | {"resnet.x.position_ids": torch.arange(3)}, file, metadata={"format": "pt"})
    assert np.array_equal(
        logits(load_classifier(str(folder)), pictures(2, 32)), logits(net, pictures(2, 32))
    )


def test_weights_that_are_no_numbers(folder):
    file = folder / "model.safetensors"
    weights = load_file(file)
    weights["classifier.1.bias"] = weights["classifier.1.bias"] * float("nan")
    save_file(weights, file, metadata={"format": "pt"})
    suspect = FolderClassifier(folder, ANIMALS)
    refused(
        lambda: ask_classifier(suspect, pictures(4, 32), ANIMALS), "not finite", "4 of 4", "weights"
    )


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pth", "weights.pkl"])
def test_pickles_are_not_opened(folder, name):
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(b"cos\nsystem\n(S'touch opened'\ntR.")
    refused(
        lambda: FolderClassifier(folder, ANIMALS), name.replace(".", r"\."), "pickle", "safetensors"
    )


def test_code_in_a_folder_is_not_run(folder, tmp_path):
    edited(
        folder / "config.json",
        auto_map={"AutoModelForImageClassification": "evil.Net"},
        model_type="x",
    )
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Net: pass\n")
    refused(lambda: FolderClassifier(folder, ANIMALS), "could not be loaded")
    assert not (tmp_path / "ran").exists()


def test_a_network_that_wants_another_size(tmp_path):
    save_classifier(classifier("vit", ANIMALS, size=32), str(tmp_path), size=64)
    refused(
        lambda: FolderClassifier(tmp_path, ANIMALS)(pictures(2, 32)), "does not take", "prepare"
    )


def test_hub_names(folder, tmp_path, monkeypatch):
    "From the hub's own cache on this disk, without a network; and never for a mistyped folder."
    import huggingface_hub

    cached = tmp_path / "hub/models--somebody--animals"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs/main").write_text("c0ffee")
    (cached / "snapshots").mkdir()
    folder.rename(cached / "snapshots/c0ffee")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    fetch = huggingface_hub.snapshot_download
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda name, **how: fetch(name, cache_dir=tmp_path / "hub", local_files_only=True, **how),
    )
    assert FolderClassifier("hub:somebody/animals", ANIMALS)(pictures(2, 32)).shape == (2, 3)
    refused(lambda: FolderClassifier("hub:somebody/else", ANIMALS), "hub:somebody/else", "fetched")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked"))
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("it asked the network"))
    refused(lambda: FolderClassifier("somebody/animals", ANIMALS), "no folder", "hub:owner/model")


# ONNX


class Logits(torch.nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, pixel_values):
        return self.net(pixel_values).logits


@pytest.fixture(scope="module")
def exported(net, tmp_path_factory):
    "The network as PyTorch exports it, for any number of pictures and for one."
    pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    path = tmp_path_factory.mktemp("onnx")
    for name, axes in (("any", {"pixel_values": {0: "n"}, "logits": {0: "n"}}), ("one", {})):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                Logits(net).eval(),
                torch.zeros(1, 3, 32, 32),
                str(path / f"{name}.onnx"),
                input_names=["pixel_values"],
                output_names=["logits"],
                dynamic_axes=axes,
                dynamo=False,
            )
    return path


OURS = dict(size=32, mean=[0.5] * 3, std=[0.5] * 3)


@pytest.mark.parametrize("name", ["any", "one"])
def test_an_exported_network_answers_the_same(net, exported, name):
    x = pictures(70, 32)
    z = logits(net, x)
    suspect = ONNXClassifier(exported / f"{name}.onnx", ANIMALS, names=ANIMALS, prepare=OURS)
    assert np.allclose(suspect(x), z, atol=1e-4)
    theirs = ["x", "Panda", "FROG"]
    turned = ONNXClassifier(
        exported / f"{name}.onnx", ["frog", "panda"], names=theirs, prepare=OURS
    )
    assert np.allclose(turned(x), z[:, [2, 1]], atol=1e-4)


def test_files_beside_an_onnx_file_say_the_rest(net, exported, folder):
    file = folder / "model.onnx"
    file.write_bytes((exported / "any.onnx").read_bytes())
    x = pictures(4, 32)
    assert np.allclose(ONNXClassifier(file, ANIMALS[::-1])(x), logits(net, x)[:, ::-1], atol=1e-4)
    (folder / "preprocessor_config.json").unlink()
    refused(lambda: ONNXClassifier(file, ANIMALS), r"model\.onnx", "prepared")
    (folder / "config.json").unlink()
    refused(lambda: ONNXClassifier(file, ANIMALS, prepare=OURS), r"model\.onnx", "names")


def test_onnx_files_that_cannot_be_used(exported, tmp_path):
    def suspect(file=exported / "any.onnx", names=ANIMALS, **prepare):
        return ONNXClassifier(file, ANIMALS, names=names, prepare=OURS | prepare)

    refused(lambda: suspect(tmp_path / "no.onnx"), r"no\.onnx", "check the path")
    (tmp_path / "x.onnx").write_bytes(b"not ONNX")
    refused(lambda: suspect(tmp_path / "x.onnx"), r"x\.onnx", "could not be read", "export")
    (tmp_path / "x.onnx").write_bytes((exported / "any.onnx").read_bytes()[:5000])
    refused(lambda: suspect(tmp_path / "x.onnx"), r"x\.onnx", "could not be read")
    refused(lambda: suspect(size=40)(pictures(2)), "does not take", "40, 40", "prepare")
    refused(
        lambda: suspect(names=[*ANIMALS, "newt"])(pictures(2)), r"\(2, 3\)", r"\(2, 4\)", "4 names"
    )


def means(path, shape, outputs, kind=1):
    "An ONNX graph written by hand: the mean of each colour, as scores or as probabilities."
    from onnx import TensorProto, helper

    axes = [2, 3] if shape[1] == 3 else [1, 2]
    nodes = [
        helper.make_node("ReduceMean", ["input"], ["logits"], axes=axes, keepdims=0),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    of = [helper.make_tensor_value_info(name, kind, [None, 3]) for name in outputs]
    given = [helper.make_tensor_value_info("input", kind, shape)]
    graph = helper.make_graph(nodes, "means", given, of)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    assert TensorProto.FLOAT == 1 and TensorProto.FLOAT16 == 10
    return path


RAW = dict(size=8, mean=[0] * 3, std=[1] * 3)


@pytest.mark.parametrize("shape", [["n", 3, 8, 8], ["n", 8, 8, 3], [4, 3, 8, 8], [4, 8, 8, 3]])
@pytest.mark.parametrize("kind", [1, 10])
@pytest.mark.parametrize("output", ["logits", "probabilities"])
def test_every_order_of_axes_and_kind_of_number(tmp_path, shape, kind, output):
    pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    file = means(tmp_path / "x.onnx", shape, [output], kind)
    x = pictures(10, 8)
    z = x.mean((1, 2)) / 255
    _, scores = ask_classifier(ONNXClassifier(file, ANIMALS, ANIMALS, prepare=RAW), x, ANIMALS)
    expected = z if output == "logits" else z - np.log(np.exp(z).sum(1, keepdims=True))
    assert np.allclose(scores, expected, atol=0.01 if kind == 10 else 1e-5)


def test_onnx_files_of_several_outputs(tmp_path):
    pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    file = means(tmp_path / "x.onnx", ["n", 3, 8, 8], ["logits", "probabilities"])
    refused(
        lambda: ONNXClassifier(file, ANIMALS, ANIMALS, prepare=RAW), "logits, probabilities", "one"
    )


def test_without_onnxruntime(exported, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    refused(
        lambda: ONNXClassifier(exported / "any.onnx", ANIMALS, ANIMALS, prepare=OURS),
        r"pip install 'trainprove_nb\[onnx\]'",
        error=ImportError,
    )


# Do answers make sense?

TEN = [f"class {k}" for k in range(10)]


def answered(ability, n=400, k=10, seed=0):
    "What somebody answers who is right with this chance, and errs at random; and the truth."
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, k, n)
    knows = rng.random(n) < (ability - 1 / k) / (1 - 1 / k)
    return np.where(knows, truth, rng.integers(0, k, n)), truth


@pytest.mark.parametrize("ability", [0.3, 0.5, 0.9, 1.0])
def test_honest_suspects_are_not_stopped(ability):
    for seed in range(40):
        check_sense(*answered(ability, seed=seed), TEN)


@pytest.mark.parametrize("ability", [0.3, 0.6, 1.0])
def test_names_in_another_order_are_noticed(ability):
    for seed in range(20):
        labels, truth = answered(ability, seed=seed)
        order = np.roll(np.arange(10), seed % 9 + 1)
        refused(
            lambda x=order[labels], t=truth: check_sense(x, t, TEN), "its 'class", "mapping|names"
        )
    labels, truth = answered(0.9)
    two = np.where(labels == 3, 7, np.where(labels == 7, 3, labels))
    refused(
        lambda: check_sense(two, truth, TEN),
        "its 'class 3' is our 'class 7', its 'class 7' is our 'class 3'",
    )


def test_who_confuses_two_classes_is_not_stopped():
    "Half of one class is taken for another: an honest weakness."
    rng = np.random.default_rng(0)
    for _ in range(40):
        truth = rng.integers(0, 10, 400)
        labels = np.where((truth == 3) & (rng.random(400) < 0.5), 7, truth)
        check_sense(labels, truth, TEN)


def test_guessing_is_noticed():
    stopped = 0
    for seed in range(100):
        try:
            check_sense(*answered(0.1, seed=seed), TEN)
        except ValueError as e:
            stopped += 1
            assert "guesses" in str(e)
    assert stopped >= 97  # 99 are expected
    truth = np.repeat([0, 1], [90, 10])
    refused(lambda: check_sense(np.zeros(100, int), truth, ["a", "b"]), "90%", "guesses")


def test_a_suspect_far_below_the_poorest_shadow():
    labels, truth = answered(0.3)
    check_sense(labels, truth, TEN, least=0.35)
    check_sense(labels, truth, TEN, least=0.05)  # shadows that guess say nothing
    refused(lambda: check_sense(labels, truth, TEN, least=0.8), "poorest shadow", "80%")
    refused(lambda: check_sense(labels[:3], truth, TEN), "3 labels and 400 classes")


# Whatever somebody has


def test_every_form_is_opened(folder, tmp_path, service, exported):
    answers().to_csv(tmp_path / "t.csv", index=False)
    answers().to_csv(tmp_path / "t.tsv", index=False, sep="\t")
    answers().to_parquet(tmp_path / "t.parquet")
    for name in ("t.csv", "t.tsv", "t.parquet"):
        found = open_classifier(str(tmp_path / name), ANIMALS, keep="unused", mapping=None)
        assert isinstance(found, CSVClassifier) and found(X).tolist() == TRUE
    assert isinstance(open_classifier(str(folder), ANIMALS), FolderClassifier)
    file = str(exported / "any.onnx")
    assert isinstance(open_classifier(file, ANIMALS, names=ANIMALS, prepare=OURS), ONNXClassifier)
    kept = str(tmp_path / "kept")
    asked = open_classifier(service[0], ANIMALS, keep=kept, mapping={"newt": "frog"})
    assert isinstance(asked, HTTPClassifier) and (asked.keep, asked.mapping) == (
        kept,
        {"newt": "frog"},
    )


@pytest.mark.parametrize(
    "what, says",
    [
        ("net.pth", ("pickle", "ONNX", "CSV", "safetensors|transformers")),
        ("net.PT", ("pickle",)),
        ("net.safetensors", ("which network", "ONNX", "config.json")),
        ("answers.xlsx", ("no form", "parquet")),
        ("models/mistyped", ("no folder", "hub:owner/model")),
        ("no.csv", ("no file",)),
        ("no.onnx", ("no file",)),
    ],
)
def test_what_cannot_be_opened(what, says, monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("it asked the network"))
    refused(lambda: open_classifier(what, ANIMALS), what.replace(".", r"\."), *says)
    if what == "net.pth":
        refused(lambda: check_model_file(what), "pickle")


def test_options_that_are_of_no_use(tmp_path):
    answers().to_csv(tmp_path / "t.csv", index=False)
    table = str(tmp_path / "t.csv")
    refused(lambda: open_classifier(table, ANIMALS, prepare=OURS), "no use for prepare", "mapping")
    refused(lambda: open_classifier("http://x", ANIMALS, files=["a"]), "no use for files")
