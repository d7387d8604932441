"Suspects: pipelines, folders, tables and web services that are asked, and what they may answer."

import base64
import io
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import ANIMALS, GOOD, folder_of, image, png, refused
from PIL import Image

from trainprove_nb.models.classifiers import classifier, load_classifier, save_classifier
from trainprove_nb.suspects.classifiers import (
    CSVClassifier,
    FolderClassifier,
    HTTPClassifier,
    ask_classifier,
)
from trainprove_nb.suspects.generators import FolderSuspect, ask
from trainprove_nb.suspects.services import HTTPSuspect

# Generators

ANSWERS = np.zeros((2, 8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    "answer, says",
    [
        (ANSWERS[:1], "1 pictures for 2 prompts"),
        (ANSWERS / 255, "float64 .2, 8, 8, 3."),
        (ANSWERS[..., :1], "uint8 .2, 8, 8, 1."),
        (ANSWERS[0], "uint8 .8, 8, 3."),
        ([image(), image()], "list"),
        (None, "NoneType"),
    ],
    ids=["too few", "floats", "grey", "one", "list", "nothing"],
)
def test_suspect_that_answers_wrongly(answer, says):
    refused(
        lambda: ask(lambda prompts, seeds: answer, ["a", "b"], [0, 1]),
        "the suspect",
        says,
        "expected|give|one picture",
    )


def test_answers_missing_from_a_folder(tmp_path):
    folder_of(tmp_path, [GOOD], {"a.png": png()})
    assert ask(FolderSuspect(tmp_path), ["a"], [0]).shape == (1, 8, 8, 3)
    refused(
        lambda: ask(FolderSuspect(tmp_path), ["a", "z"], [0, 1]),
        str(tmp_path),
        "0 answers to 'z'",
        "1",
        "add|give|collect",
    )
    refused(
        lambda: ask(FolderSuspect(tmp_path), ["a", "a"], [0, 1]),
        str(tmp_path),
        "1 answers to 'a'",
        "2",
        "add|give|collect",
    )


def test_several_answers_to_one_prompt_are_taken_in_order(tmp_path):
    files = {}
    for name, level in (("a.png", 10), ("b.png", 20)):
        out = io.BytesIO()
        Image.new("RGB", (4, 4), (level,) * 3).save(out, "png")
        files[name] = out.getvalue()
    suspect = FolderSuspect(folder_of(tmp_path, [GOOD, {"file_name": "b.png", "text": "a"}], files))
    assert ask(suspect, ["a", "a"], [0, 1])[:, 0, 0, 0].tolist() == [10, 20]


@pytest.mark.parametrize("files", [{}, {"a.png": b"not a picture"}], ids=["missing", "no picture"])
def test_answer_that_cannot_be_opened(tmp_path, files):
    folder_of(tmp_path, [GOOD], files)
    refused(
        lambda: ask(FolderSuspect(tmp_path), ["a"], [0]),
        re.escape(str(tmp_path)),
        r"a\.png",
        "add|give|replace|collect",
        error=(ValueError, FileNotFoundError),
    )


@pytest.mark.parametrize(
    "lines", ['{"file_name": "a.png"}\n', '{"file_name": "a.png", "te'], ids=["no text", "cut"]
)
def test_answers_without_a_text(tmp_path, lines):
    (tmp_path / "metadata.jsonl").write_text(lines)
    refused(lambda: FolderSuspect(tmp_path), re.escape(str(tmp_path)), "file_name and text")


def test_folder_without_answers(tmp_path):
    refused(
        lambda: FolderSuspect(tmp_path),
        str(tmp_path),
        "metadata.jsonl",
        "file_name and text",
        error=FileNotFoundError,
    )


# Generators behind a web service


@pytest.fixture
def service(monkeypatch):
    """A local web service: its address, the replies that it will give, the requests that it got.

    The last reply is given again and again."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            status, kind, body = replies.pop(0) if len(replies) > 1 else replies[0]
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    replies, asked, server = [], [], ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
    ).start()
    yield f"http://127.0.0.1:{server.server_port}/draw", replies, asked
    server.shutdown()
    server.server_close()


PICTURE = (200, "image/png", png())


REPLIES = {
    "500": ((500, "text/plain", b"out of memory"), "500"),
    "garbage": ((200, "image/png", b"garbage"), "not a picture|cannot"),
    "page": ((200, "text/html", b"<html>log in</html>"), "not a picture|cannot"),
    "JSON without image": ((200, "application/json", b'{"error": "busy"}'), "image"),
    "JSON with garbage": ((200, "application/json", b'{"image": "AAAA"}'), "not a picture|cannot"),
}


@pytest.mark.parametrize("reply", REPLIES)
def test_service_that_gives_no_picture(service, reply):
    url, replies, asked = service
    replies[:], says = [REPLIES[reply][0]], REPLIES[reply][1]
    refused(
        lambda: ask(HTTPSuspect(url, timeout=5, tries=2, pause=0.01), ["a fox"], [7]),
        url,
        "'a fox'",
        "2 tries",
        says,
        "check|expected|give",
    )
    assert asked == [{"prompt": "a fox", "seed": 7}] * 2


@pytest.mark.parametrize(
    "reply",
    [
        PICTURE,
        (
            200,
            "application/json; charset=utf-8",
            json.dumps({"image": base64.b64encode(png()).decode()}).encode(),
        ),
    ],
    ids=["PNG", "JSON"],
)
def test_service_that_gives_pictures(service, reply):
    url, replies, asked = service
    replies.append(reply)
    answers = ask(HTTPSuspect(url, timeout=5, pause=0.01), ["a fox", "a bun"], np.array([7, 8]))
    assert (answers == np.asarray(image())).all() and len(answers) == 2
    assert asked == [{"prompt": "a fox", "seed": 7}, {"prompt": "a bun", "seed": 8}]


def test_service_that_recovers_is_asked_again(service):
    url, replies, asked = service
    replies[:] = [(500, "text/plain", b""), (200, "image/png", b"garbage"), PICTURE]
    assert (
        ask(HTTPSuspect(url, timeout=5, pause=0.01), ["a fox"], [7]).shape == (1, 8, 8, 3)
        and len(asked) == 3
    )


def test_what_a_service_drew_is_kept(service, tmp_path):
    url, replies, asked = service
    replies[:] = [PICTURE, (500, "text/plain", b"")]
    keep = str(tmp_path / "kept")

    def drawn():
        suspect = HTTPSuspect(url, timeout=5, tries=1, keep=keep)
        return ask(suspect, ["a fox", "a bun"], [7, 8])

    refused(drawn, url, "'a bun'", "gathered", keep)
    replies[:] = [PICTURE]
    assert (drawn() == np.asarray(image())).all()
    assert asked == [
        {"prompt": "a fox", "seed": 7},
        {"prompt": "a bun", "seed": 8},
        {"prompt": "a bun", "seed": 8},
    ]
    drawn()
    assert len(asked) == 3


def test_service_that_is_not_there(service):
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as closed:
        url = f"http://127.0.0.1:{closed.server_port}/"
    refused(
        lambda: ask(HTTPSuspect(url, timeout=5, tries=1), ["a fox"], [7]),
        url,
        "'a fox'",
        "check|expected|give",
    )


# Classifiers


def test_bad_answers():
    x = np.zeros((4, 8, 8, 3), np.uint8)
    refused(
        lambda: ask_classifier(lambda p: np.array([0, 1, 2, 3]), x, ANIMALS), "label 3", "0 to 2"
    )
    refused(
        lambda: ask_classifier(lambda p: np.array([0, 1]), x, ANIMALS), "2 answers to 4 pictures"
    )
    refused(
        lambda: ask_classifier(lambda p: np.zeros((4, 5)), x, ANIMALS), r"\(4, 5\)", r"\(4, 3\)"
    )
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
    refused(
        lambda: FolderClassifier(str(tmp_path), ANIMALS), "how pictures are prepared", "prepare="
    )
    file.write_text('{"image_processor_type": "NoSuchProcessor"}')
    refused(
        lambda: FolderClassifier(str(tmp_path), ANIMALS),
        r"preprocessor_config\.json",
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


# Classifiers behind a web service


@pytest.fixture
def classifier_service(monkeypatch):
    "A web service: its address, an object whose `reply` says what it answers, the requests it got."
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            code, body = service.reply(len(asked))
            self.send_response(code)
            self.end_headers()
            try:
                self.wfile.write(body)
            except BrokenPipeError:
                pass

        def log_message(self, *_):
            pass

    asked, service = [], SimpleNamespace()
    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", service, asked
    server.shutdown()
    server.server_close()


def distinct(n):
    "Plain pictures, each of another grey."
    return np.arange(n, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 3), np.uint8)


def test_a_service_that_breaks_down_keeps_what_was_gathered(classifier_service, tmp_path):
    url, service, asked = classifier_service
    x, keep = distinct(4), tmp_path / "kept.jsonl"
    service.reply = lambda k: (
        (200, json.dumps({"label": "frog"}).encode()) if k <= 2 else (500, b"")
    )
    refused(
        lambda: HTTPClassifier(url, ANIMALS, str(keep), tries=2, pause=0)(x),
        url,
        "2 tries",
        "500",
        r"kept\.jsonl",
    )
    assert [json.loads(line)["answer"] for line in keep.read_text().strip().splitlines()] == [
        {"label": "frog"}
    ] * 2 and len(asked) == 4
    keep.write_text(keep.read_text() + '\n{"asked": "cut o')  # killed while writing
    service.reply = lambda k: (200, json.dumps({"label": "panda"}).encode())
    assert HTTPClassifier(url, ANIMALS, str(keep))(x).tolist() == [1, 1, 2, 2] and len(asked) == 6


def test_nothing_that_was_answered_is_asked_again(classifier_service, tmp_path):
    "Not even after a line that was cut off, nor in a folder that was not there."
    url, service, asked = classifier_service
    service.reply = lambda k: (200, json.dumps({"label": "frog"}).encode())
    keep = tmp_path / "new" / "kept.jsonl"
    HTTPClassifier(url, ANIMALS, str(keep))(distinct(1))
    keep.write_text(keep.read_text() + '\n5\n{"asked": "cut o')
    for _ in range(2):
        HTTPClassifier(url, ANIMALS, str(keep))(distinct(3))
    assert len(asked) == 3


def test_a_header_may_name_the_model_and_a_key_does_not(classifier_service, tmp_path, monkeypatch):
    url, service, asked = classifier_service
    service.reply = lambda k: (200, json.dumps({"label": "frog"}).encode())
    monkeypatch.setenv("KEY", "k")
    for headers in ({"X-Model": "a"}, {"X-Model": "b"}, {"X-Model": "a", "X-Api-Key": "$KEY"}):
        HTTPClassifier(url, ANIMALS, str(tmp_path / "kept.jsonl"), headers=headers)(distinct(2))
    assert len(asked) == 4  # with another key it is the same service


def test_kept_answers_are_not_taken_for_another_suspects(classifier_service, tmp_path):
    url, service, asked = classifier_service
    service.reply = lambda k: (200, json.dumps({"label": "frog"}).encode())
    for suspect, classes in ((url, ANIMALS), (url + "/other", ANIMALS), (url, ANIMALS[::-1])):
        HTTPClassifier(suspect, classes, str(tmp_path / "kept.jsonl"))(distinct(2))
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
    classifier_service, tmp_path, body, words
):
    url, service, asked = classifier_service
    service.reply = lambda k: (200, body)
    refused(
        lambda: HTTPClassifier(url, ANIMALS, str(tmp_path / "kept.jsonl"), tries=2, pause=0)(
            distinct(3)
        ),
        words,
        "2 tries",
    )
    assert len(asked) == 2 and not (tmp_path / "kept.jsonl").exists()


def test_a_service_that_mixes_labels_and_scores(classifier_service):
    url, service, _ = classifier_service
    service.reply = lambda k: (
        200,
        b'{"label": "frog"}' if k == 1 else b'{"scores": {"frog": 1, "panda": 2, "cat face": 3}}',
    )
    refused(lambda: HTTPClassifier(url, ANIMALS)(distinct(2)), "others with scores")


def test_a_slow_service_and_one_that_is_down(classifier_service):
    url, service, _ = classifier_service
    service.reply = lambda k: (time.sleep(1), (200, b"{}"))[1]
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
