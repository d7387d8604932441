"Bad input gets one sentence that names the value, what is allowed and what to do, before work starts; finished work stays."

import ast
import base64
import errno
import io
import json
import re
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import click
import nbformat
import numpy as np
import papermill
import pytest
import torch
from click.testing import CliRunner
from datasets import Dataset
from papermill.exceptions import PapermillExecutionError
from PIL import Image

from trainprove_nb import cli
from trainprove_nb.attribution.conf import calibrate_delta0, conf, first
from trainprove_nb.attribution.keys import detection_keys, random_keys
from trainprove_nb.data import corpora, folders
from trainprove_nb.data import pairs as pair_sets
from trainprove_nb.data.distance import distance
from trainprove_nb.data.mix import check_rho, mix
from trainprove_nb.evidence import rates as evidence
from trainprove_nb.evidence.release import release_test
from trainprove_nb.lab import makers
from trainprove_nb.lab.engine import Lab
from trainprove_nb.lab.generator_recipes import GeneratorRecipes
from trainprove_nb.lab.generator_scales import generator_scale
from trainprove_nb.lab.generator_trials import generator_stages, generator_trials
from trainprove_nb.lab.makers import own_split
from trainprove_nb.lab.store import Store
from trainprove_nb.models.bundled import WEIGHTS
from trainprove_nb.models.finetune import finetune
from trainprove_nb.models.pipelines import load_model
from trainprove_nb.models.sampling import generate
from trainprove_nb.suspects.generators import FolderSuspect, ask
from trainprove_nb.suspects.services import HTTPSuspect


def sentence(text, *says):
    "Check that a message is one readable line in which each of `says` (regular expressions) is found."
    assert not re.search(r"\n|Traceback| object at 0x", text) and len(text) < 600, text
    assert [s for s in says if not re.search(s, text)] == [], text


def refused(call, *says, error=ValueError):
    with pytest.raises(error) as e:
        call()
    sentence(str(e.value), *says)


def texts(n):
    return Dataset.from_dict({"text": [f"text {k}" for k in range(n)]})


def image(side=8):
    return Image.fromarray(
        np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)
    )


def png():
    out = io.BytesIO()
    image().save(out, "png")
    return out.getvalue()


# numbers and names


@pytest.mark.parametrize("rho", [1.5, -0.1, float("nan"), float("inf"), "0.3", None, True])
def test_rho_outside_0_to_1(rho):
    refused(lambda: check_rho(rho), re.escape(f"rho = {rho!r}"), "give .* 0 .* 1")
    refused(lambda: mix(texts(9), texts(9), rho, 4), re.escape(f"rho = {rho!r}"))


def test_mix_of_more_pairs_than_there_are():
    refused(
        lambda: mix(texts(90), texts(10), 0.5, 60),
        "rho = 0.5",
        "60 pairs",
        "30 generated",
        "10 are there",
        "(?i)give|ask for|lower|choose",
    )
    refused(lambda: mix(texts(10), texts(90), 0.5, 60), "30 real", "10 are there")


@pytest.mark.parametrize("n", [0, -5])
def test_mix_of_no_pairs(n):
    refused(lambda: mix(texts(9), texts(9), 0.5, n), f"n = {n}", "at least 1")


@pytest.mark.parametrize("n", [1001, 0, -1])
def test_corpus_of_more_pairs_than_there_are(n):
    refused(
        lambda: corpora.corpus("avatars", "evaluation", n),
        f"^{n} pairs",
        "avatars/evaluation",
        "ask for 1 to 1000",
    )


def test_own_split_of_more_pictures_than_there_are():
    ds = pair_sets.pairs([image()] * 30 + [image(9)], ["text"] * 31)
    refused(
        lambda: own_split(ds, "source", 5, "my pictures"),
        "5 pairs",
        "source split of my pictures",
        "has 1 .of 2 different",
        "give more|ask for fewer",
    )


NAMES = {
    "corpus": (lambda: corpora.corpus("cats"), "'cats'", "avatars, emoji", "choose"),
    "split": (
        lambda: corpora.corpus("emoji", "tests"),
        "'tests'",
        "pretrain, source, real",
        "choose",
    ),
    "split of own pictures": (
        lambda: own_split(pair_sets.pairs([image()], ["text"]), "pretrain", 1),
        "'pretrain'",
        "source, real, calibration, evaluation",
    ),
    "distance": (lambda: distance("l3"), "'l3'", "rms, tile_max", "choose"),
    "scale": (lambda: generator_scale("huge"), "'huge'", "smoke, mini, gpu, paper", "choose"),
    "knob": (lambda: generator_scale("mini", stepz=3), "'stepz'", "suspects", "choose"),
    "source": (
        lambda: GeneratorRecipes(generator_scale("mini")).sources(["mini-v3"]),
        "'mini-v3'",
        "mini-v1-avatars",
        "choose",
    ),
    "source, not in a list": (
        lambda: GeneratorRecipes(generator_scale("mini")).sources("mini-v3"),
        "'mini-v3'",
        "mini-v1-avatars",
    ),
    "model": (lambda: load_model("mini-v3"), "'mini-v3'", "mini-v1, mini-v2", "choose"),
}


@pytest.mark.parametrize("name", NAMES)
def test_unknown_name(name):
    refused(*NAMES[name])


@pytest.mark.parametrize("N", [101, 0, -1, 2.5])
def test_N_above_the_mined_keys(N):
    for call in (lambda: conf([0.1] * 100, 0.15, N), lambda: first([[0.1] * 100], N)):
        refused(call, f"N = {N} ", "100 were mined", "ask for 1 to 100")


@pytest.mark.parametrize("draw", [detection_keys, random_keys])
def test_more_keys_than_training_pairs(draw):
    refused(
        lambda: draw(texts(20), np.zeros(20), 21), "^21 key", "20 training pairs", "ask for 1 to 20"
    )


@pytest.mark.parametrize("delta0", [-0.01, float("nan"), "1e-3"])
def test_delta0_is_no_distance(delta0):
    refused(lambda: conf([0.1], delta0), f"delta0 = .?{delta0}", "at least 0", "give")


@pytest.mark.parametrize("fpr", [0, 1, -0.1, 1.5, float("nan")])
def test_calibration_to_an_impossible_rate(fpr):
    refused(lambda: calibrate_delta0([0.1, 0.2], fpr), f"fpr = {fpr}", "give", "between 0 and 1")


def test_calibration_without_innocents():
    refused(lambda: calibrate_delta0([]), "0 innocent answers", "at least one")


def test_scores_of_one_class_only():
    for score in (evidence.auc, evidence.tpr_at_fpr):
        refused(lambda: score([], [0.1, 0.2]), "0 innocent and 2 infringing", "at least one")


@pytest.mark.parametrize("fpr", [-0.1, 1.5])
def test_tpr_at_an_impossible_rate(fpr):
    refused(lambda: evidence.tpr_at_fpr([0.1], [0.2], fpr), f"fpr = {fpr}", "0 .* 1")


def test_pictures_that_do_not_match():
    refused(
        lambda: distance("rms")(np.zeros((2, 8, 8, 3)), np.zeros((2, 9, 9, 3))),
        r"\(2, 8, 8, 3\)",
        r"\(2, 9, 9, 3\)",
        "bring",
    )
    refused(
        lambda: distance("tile_max")(np.zeros((2, 9, 8, 3)), np.zeros((2, 9, 8, 3))),
        "4 tiles",
        "9×8",
        "choose",
    )
    refused(lambda: pair_sets.pixels([image(8), image(9)]), r"8, 8", r"9, 9", "read")
    refused(lambda: pair_sets.pairs([image()], ["a", "b"]), "1 images but 2 captions", "give")


def test_prompts_and_seeds_that_do_not_match():
    refused(lambda: generate(None, ["a fox"], [1, 2]), "1 prompts but 2 seeds", "give")
    refused(lambda: generate(None, ["a fox", None], [1, 2]), "prompt 1 is None", "text")


KNOBS = {
    "rhos": ([0, 1.5], "rho = 1.5", "give"),
    "overlap": (2, "2", "give"),
    "mined": (151, "151", "150", "ask for 1 to"),
    "suspects": (0, "suspects = 0", "at least 1"),
    "pairs": (-3, "pairs = -3", "at least 1"),
    "calibration": ("two", "calibration = 'two'"),
    "train": (300.5, "train = 300.5"),
    "source_training": ({"step": 3}, "source_training", "'step'", "steps"),
    "suspect_training": ({"lr": 0.1, "steps_": 3}, "suspect_training", "'steps_'", "steps"),
    "sampling": ({"guide": 2}, "sampling", "'guide'", "guidance"),
    "mixed_precision": ("fp8", "mixed_precision", "'fp8'", "bf16"),
}


@pytest.mark.parametrize("knob", KNOBS)
def test_knob_out_of_range(knob):
    value, *says = KNOBS[knob]
    refused(lambda: generator_scale("mini", **{knob: value}), *says)


def test_rhos_that_are_no_list():
    refused(lambda: generator_scale("mini", rhos=0.5), "rhos = 0.5", "list")


def test_one_corpus_leaves_no_other_for_the_innocents():
    def plan():
        recipes = GeneratorRecipes(generator_scale("smoke", corpora=["avatars"]))
        return [generator_trials(recipes, source) for source in recipes.sources()]

    refused(plan, "corpora", "avatars", "two|2|another")


# pairs on disk


def folder_of(path, rows, files):
    "An imagefolder with these lines of metadata and these files."
    for name, content in files.items():
        (path / name).write_bytes(content)
    (path / "metadata.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


GOOD = {"file_name": "a.png", "text": "a"}


@pytest.mark.parametrize(
    "content",
    [b"", b"not a picture", png()[:-40], png()[:30]],
    ids=["empty", "text", "cut", "cut early"],
)
def test_image_that_cannot_be_decoded(tmp_path, content):
    folder = folder_of(
        tmp_path, [GOOD, {"file_name": "b.png", "text": "b"}], {"a.png": png(), "b.png": content}
    )
    refused(
        lambda: folders.read_pairs(folder), r"^b\.png", re.escape(str(folder)), "replace or remove"
    )


@pytest.mark.parametrize("text", ["", "  ", None])
def test_caption_missing(tmp_path, text):
    folder = folder_of(
        tmp_path, [GOOD, {"file_name": "b.png", "text": text}], {"a.png": png(), "b.png": png()}
    )
    refused(
        lambda: folders.read_pairs(folder),
        r"^b\.png",
        re.escape(str(folder)),
        "caption",
        "needs a text",
    )


def test_captions_that_are_no_texts(tmp_path):
    Dataset.from_dict({"image": [{"path": "a.png", "bytes": png()}], "text": [7]}).to_parquet(
        tmp_path / "part.parquet"
    )
    refused(
        lambda: folders.read_pairs(tmp_path), r"a\.png", re.escape(str(tmp_path)), "is 7", "text"
    )


def test_imagefolder_that_names_a_missing_file(tmp_path):
    folder = folder_of(tmp_path, [GOOD, {"file_name": "b.png", "text": "b"}], {"a.png": png()})
    refused(
        lambda: folders.read_pairs(folder),
        re.escape(str(folder / "metadata.jsonl")),
        r"b\.png",
        "1 missing",
        "add|remove|copy",
    )


def test_imagefolder_line_without_a_file(tmp_path):
    folder = folder_of(tmp_path, [GOOD, {"text": "b"}], {"a.png": png()})
    refused(
        lambda: folders.read_pairs(folder), re.escape(str(folder / "metadata.jsonl")), "file_name"
    )


@pytest.mark.parametrize(
    "lines", ["", '{"file_name": "a.png", "te', "not json\n"], ids=["empty", "cut", "not JSON"]
)
def test_metadata_that_cannot_be_read(tmp_path, lines):
    (tmp_path / "metadata.jsonl").write_text(lines)
    refused(
        lambda: folders.read_pairs(tmp_path),
        re.escape(str(tmp_path / "metadata.jsonl")),
        "file_name and text",
    )


def test_folder_that_holds_no_pairs(tmp_path):
    refused(
        lambda: folders.read_pairs(tmp_path / "none"),
        str(tmp_path / "none"),
        "give",
        error=FileNotFoundError,
    )
    refused(lambda: folders.read_pairs(tmp_path), str(tmp_path), "expected metadata.jsonl")


def test_columns_missing(tmp_path):
    Dataset.from_dict({"picture": ["a"], "text": ["b"]}).to_parquet(tmp_path / "part.parquet")
    refused(
        lambda: folders.read_pairs(tmp_path),
        str(tmp_path),
        "lacks the column.* image",
        "picture",
        "rename",
    )


def test_parquet_that_was_cut(tmp_path):
    pair_sets.pairs([image()], ["a"]).to_parquet(tmp_path / "part.parquet")
    (tmp_path / "part.parquet").write_bytes((tmp_path / "part.parquet").read_bytes()[:-20])
    refused(
        lambda: folders.read_pairs(tmp_path),
        re.escape(str(tmp_path)),
        "could not be read",
        "copy|replace|give",
    )


# models


def test_folder_that_is_no_model(tmp_path):
    refused(lambda: load_model(str(tmp_path)), str(tmp_path), "no model_index.json", "give")


@pytest.fixture
def model(tmp_path):
    "A copy of mini-v1, free to be broken."
    return shutil.copytree(WEIGHTS / "mini-v1", tmp_path / "my model")


def cut(path):
    path.write_bytes(path.read_bytes()[:-1000])


BREAKS = {
    "cut weights": lambda m: cut(m / "unet/diffusion_pytorch_model.safetensors"),
    "empty weights": lambda m: (m / "text_encoder/model.safetensors").write_bytes(b""),
    "no unet": lambda m: shutil.rmtree(m / "unet"),
    "index no JSON": lambda m: (m / "model_index.json").write_text('{"_class_name": '),
}


@pytest.mark.parametrize("broken", BREAKS)
def test_model_folder_that_is_broken(model, broken):
    BREAKS[broken](model)
    refused(
        lambda: load_model(str(model)),
        re.escape(str(model)),
        "could not be loaded",
        "copy|give|download|save",
    )


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_checkpoint_that_was_cut(tmp_path, one_thread):
    file, pairs, knobs = (
        tmp_path / "run.pt",
        pair_sets.pairs([image(32)], ["a"]),
        dict(steps=1, batch_size=1, save_every=1),
    )
    finetune(load_model("mini-v1"), pairs, checkpoint=str(file), **knobs)
    cut(file)
    refused(
        lambda: finetune(load_model("mini-v1"), pairs, checkpoint=str(file), **knobs),
        re.escape(str(file)),
        "delete",
    )


# suspects

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
    suspect = lambda: FolderSuspect(folder_of(tmp_path, [GOOD], files))
    refused(
        lambda: ask(suspect(), ["a"], [0]),
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


@pytest.fixture
def service(monkeypatch):
    "A local web service: its address, the replies that it will give (the last one again and again), the requests that it got."

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
    drawn = lambda **settings: ask(
        HTTPSuspect(url, timeout=5, tries=1, **settings), ["a fox", "a bun"], [7, 8]
    )
    refused(
        lambda: drawn(keep=str(tmp_path / "kept")),
        url,
        "'a bun'",
        "gathered",
        str(tmp_path / "kept"),
    )
    replies[:] = [PICTURE]
    assert (drawn(keep=str(tmp_path / "kept")) == np.asarray(image())).all()
    assert asked == [
        {"prompt": "a fox", "seed": 7},
        {"prompt": "a bun", "seed": 8},
        {"prompt": "a bun", "seed": 8},
    ]
    drawn(keep=str(tmp_path / "kept"))
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


# folders that cannot be written


@pytest.fixture
def blocked(tmp_path):
    "A folder that nobody can make, not even root: it would lie below a file."
    (tmp_path / "file").write_text("in the way")
    return tmp_path / "file" / "sub"


@pytest.mark.parametrize("kind", [Store, Lab])
def test_lab_folder_that_cannot_be_written(blocked, kind):
    refused(
        lambda: kind(str(blocked)),
        f"cannot write to {re.escape(str(blocked))}",
        "choose another folder",
        error=OSError,
    )


full = pytest.mark.skipif(
    not Path("/dev/full").exists(), reason="needs /dev/full, a file that is always full"
)


@full
def test_disk_that_fills_up_leaves_whole_artifacts_only(tmp_path):
    store = Store(tmp_path)
    first = store.get(
        {"kind": "demo", "k": 1}, lambda folder, scratch: (folder / "a.txt").write_text("1")
    )

    def make(folder, scratch):
        (folder / "a.txt").write_text("2")
        (folder / "b.txt").symlink_to("/dev/full")
        (folder / "b.txt").write_text("2")

    with pytest.raises(OSError) as e:
        store.get({"kind": "demo", "k": 2}, make)
    assert e.value.errno == errno.ENOSPC
    assert not store.has({"kind": "demo", "k": 2}) and list(tmp_path.rglob("a.txt")) == [
        first / "a.txt"
    ]
    assert store.get({"kind": "demo", "k": 1}, None) == first


# the lab


def test_one_failure_stops_nothing_else(tmp_path):
    lab, draw = (
        Lab(str(tmp_path)),
        lambda **changes: {
            "kind": "pairs",
            "corpus": "emoji",
            "split": "source",
            "n": 1,
            "size": 8,
            **changes,
        },
    )
    built = []

    def build():
        for recipe in lab.build([draw(), draw(n=5000), draw(size=16)], progress=False):
            built.append(recipe)

    refused(
        build,
        "1 of 3 artifacts",
        "others are kept",
        "5000 pairs asked of emoji/source",
        "ask for 1 to 3000",
        error=RuntimeError,
    )
    assert built == [draw(), draw(size=16)] and all(lab.store.has(r) for r in built)


def test_unknown_corpus_stops_at_the_data(tmp_path):
    recipes, lab = (
        GeneratorRecipes(generator_scale("smoke", corpora=["emoji", str(tmp_path / "cats")])),
        Lab(str(tmp_path / "lab")),
    )
    stage = generator_stages(recipes, recipes.sources(["mini-v1-emoji", "mini-v1-cats"]))["data"]
    refused(
        lambda: list(lab.build(stage, progress=False)),
        "no folder at",
        "cats",
        "give an imagefolder",
        error=RuntimeError,
    )
    assert lab.store.has(recipes.train(recipes.sources(["mini-v1-emoji"])[0]))


# experiments


def grid(name="fig6", **parameters):
    "Run an experiment's notebook up to where its work begins, here and with other parameters."
    cells = [c for c in nbformat.read(cli.experiments()[name], 4).cells if c.cell_type == "code"]
    names = {}
    for c in cells:
        for statement in ast.parse(c.source).body:
            if re.search(r"\b(made|build)\(", ast.unparse(statement)):
                return names
            exec(ast.unparse(statement), names)
        if "parameters" in c.metadata.get("tags", []):
            assert set(parameters) <= set(names)
            names.update(parameters)
    raise AssertionError("the notebook builds nothing")


GRID = {
    "scale": ("huge", "'huge'", "choose"),
    "sources": (["mini-v3"], "'mini-v3'", "choose"),
    "rhos": ([0, 2], "rho = 2", "give"),
    "metric": ("l3", "'l3'", "choose"),
    "strategies": (["luck"], "'luck'", "choose"),
    "N": (1000, "N = 1000", "ask for"),
    "delta0": (-1, "delta0 = -1", "give"),
    "fpr": (2, "fpr = 2", "give"),
    "suspects": (0, "suspects = 0", "at least 1"),
    "knobs": ({"stepz": 1}, "'stepz'", "choose"),
}


OTHERS = {
    "table1": {
        "discriminators": (["oracle"], "'oracle'", "choose"),
        "shadows": (0, "shadows = 0", "at least 1"),
        "N": (11, "N = 11", "ask for"),
        "strategy": ("luck", "'luck'", "choose"),
    },
    "table2": {
        "edges": ([0.2, 0.1], "edges", "rising"),
        "N": (11, "N = 11", "ask for"),
        "metric": ("sscd:no.pt", "no.pt is not there", "download"),
    },
    "fig7": {
        "Ns": ([5, 11], "N = 11", "ask for"),
        "strategies": (["watermark"], "'watermark'", "choose"),
    },
    "hard": {
        "overlaps": ([2], "rho = 2", "give"),
        "lengths": ([0.1], "lengths", "less than one"),
        "fpr": (0, "fpr = 0", "give"),
        "knobs": ({"suspects": 2, "rhos": [0]}, "rhos", "above 0"),
    },
    "audit_generator": {
        "shadows": (2, "shadows = 2", "at least 3"),
        "alpha": (1, "alpha = 1", "between"),
        "source": ("mini-v9", "mini-v9", "choose"),
        "knobs": ({"calibration": 3}, "calibration is given twice", "once"),
    },
    "audit_classifier": {
        "owner": ("nobody", "'nobody'", "choose"),
        "alpha": (0, "alpha = 0", "between"),
        "suspect": ("none.csv", "no file none.csv", "label"),
    },
    "trainprove": {
        "batch_size": (64.5, "batch_size = 64.5", "whole number"),
        "alpha": (2, "alpha = 2", "between"),
        "knobs": ({"efforts": [1]}, "2 shadows", "at least 4"),
    },
    "batchsize": {
        "batch_sizes": ([64.5], "batch_size = 64.5", "whole number"),
        "pictures": ([10.5], "pictures has 10.5", "ask"),
    },
}


@pytest.mark.parametrize(
    "name, parameter, value, says",
    [("fig6", p, v, says) for p, (v, *says) in GRID.items()]
    + [(n, p, v, says) for n, ps in OTHERS.items() for p, (v, *says) in ps.items()],
)
def test_figure_checks_its_parameters_before_work(tmp_path, name, parameter, value, says):
    refused(
        lambda: grid(
            name,
            **{
                "scale": "smoke",
                "lab": str(tmp_path / "lab"),
                "out": str(tmp_path / "out"),
                parameter: value,
            },
        ),
        *says,
        error=(ValueError, FileNotFoundError),
    )
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_a_picture_without_room_for_the_mark_is_refused_before_work(tmp_path):
    refused(
        lambda: grid(
            "fig6",
            scale="smoke",
            knobs={"size": 8},
            lab=str(tmp_path / "lab"),
            out=str(tmp_path / "out"),
        ),
        "8×8",
        "at least 9",
    )


def test_an_auditor_asks_before_training(tmp_path, monkeypatch):
    "Answers that are too few stop the audit before any shadow is made."
    monkeypatch.chdir(tmp_path)
    (tmp_path / "answers.csv").write_text("label\npanda\n")
    names = {}

    def audit():
        for c in nbformat.read(cli.experiments()["audit_classifier"], 4).cells:
            if c.cell_type == "code":
                exec(c.source, names)
            if "parameters" in c.metadata.get("tags", []):
                names.update(scale="smoke", suspect="answers.csv")

    refused(audit, "1 answers", "pictures")
    assert {p.name for p in (tmp_path / "lab").iterdir()} <= {"labelled", "scratch"}


def test_a_kernel_that_dies_is_told_in_one_sentence(tmp_path, monkeypatch):
    from nbclient.exceptions import DeadKernelError

    def dies(*_, **__):
        raise DeadKernelError("Kernel died")

    monkeypatch.setattr(cli.papermill, "execute_notebook", dies)
    refused(
        lambda: cli.run_experiment(cli.experiments()["fig6"], {}, tmp_path),
        "fig6 stopped",
        "kernel died",
        "fewer jobs",
        error=click.ClickException,
    )


@pytest.mark.parametrize(
    "knobs, says",
    [
        (dict(shadow_lrs=[]), "shadow_lrs"),
        (dict(generators=[3]), "generators has 3"),
        (dict(losses=[["ce"]]), "losses"),
        (dict(training={"lr": 0.5}), "no 'lr'"),
        (dict(sampling={"size": 64}), "no 'size'"),
        (dict(training={"epochs": 0}), "epochs = 0"),
        (dict(batch_sizes=[0.5]), "batch_sizes has 0.5"),
        (dict(weight_decays=[-1]), "weight_decays"),
        (dict(drawn=-1), "drawn = -1"),
    ],
)
def test_settings_of_origins_that_would_be_ignored_or_break_later(knobs, says):
    from trainprove_nb.lab.classifier_scales import classifier_scale

    refused(lambda: classifier_scale("mini", knobs), says, "give|choose|at least|is none")


@pytest.mark.parametrize(
    "knobs, says",
    [
        (dict(bases=[3]), "bases names 3"),
        (dict(sampling={"size": 64}), "no 'size'"),
        (dict(prompt_search={"objective": "luck"}), "objective 'luck'"),
        (dict(suspect_training={"schedule": "cosin"}), "schedule 'cosin'"),
        (dict(suspect_training={"steps": 0}), "steps = 0"),
        (dict(source_training={"lr": -1.0}), "lr = -1"),
        (dict(suspect_training={"velocity_loss": 1}), "velocity_loss = 1"),
        (dict(sampling={"batch_size": 2.5}), "batch_size = 2.5"),
        (dict(strength=0), "strength = 0"),
    ],
)
def test_settings_that_would_be_ignored_or_break_later(knobs, says):
    refused(lambda: generator_scale("mini", knobs), says, "give|choose")


def test_a_knob_turned_twice():
    refused(
        lambda: generator_scale("mini", {"suspects": 3}, suspects=4),
        "suspects is given twice",
        "once",
    )


def test_two_sources_of_one_name():
    refused(
        lambda: GeneratorRecipes(
            generator_scale(
                "mini",
                bases=["models/base", "models/base-photos"],
                corpora=["data/photos", "data/other"],
            )
        ),
        "'base-photos'",
        "rename",
    )


def test_no_caption_is_left_that_the_source_does_not_know(tmp_path):
    "Where all captions are known, `overlap` below 1 cannot be had."

    class Known:
        def pairs(self, recipe):
            return {"text": ["a cat", "a dog"]}

    refused(
        lambda: makers.make_generated(
            Known(), {"role": ["x"], "prompts": [{}, {}], "shares": [2, 2]}, tmp_path, tmp_path
        ),
        "no caption",
        "overlap",
    )


@pytest.mark.parametrize(
    "released, withheld, says",
    [
        ([0.1, 0.2, np.nan, 0.4, 0.5], [0] * 5, "not a finite"),
        (np.zeros((2, 6)), np.zeros((3, 6)), r"\(2, 6\) and withheld \(3, 6\)"),
    ],
)
def test_release_test_of_distances_that_are_none(released, withheld, says):
    refused(lambda: release_test(released, withheld), says, "leave|give")


@pytest.mark.parametrize("distances", [[[0.1, 0.2], [0.1, 0.2]], [0.1, np.nan]])
def test_conf_of_distances_that_are_none(distances):
    refused(lambda: conf(distances), "one number for each key")


def test_claims_without_results(tmp_path):
    notebook = nbformat.read(cli.experiments()["claims"], 4)
    names = {}

    def run():
        for c in notebook.cells[:6]:
            if c.cell_type != "code":
                continue
            exec(c.source, names)
            if "parameters" in c.metadata.get("tags", []):
                names["out"] = str(tmp_path / "claims")

    refused(
        run,
        "no results of fig6, fig7, hard, table1, table2, trainprove, batchsize",
        "run trainprove figures fig6",
    )


def test_figure_does_not_take_N_of_0_for_all(tmp_path):
    refused(
        lambda: grid(scale="smoke", N=0, lab=str(tmp_path / "lab"), out=str(tmp_path / "out")),
        "N = 0",
        "ask for",
    )


def test_figure_without_any_rho(tmp_path):
    refused(
        lambda: grid(scale="smoke", rhos=[], lab=str(tmp_path / "lab"), out=str(tmp_path / "out")),
        "rhos",
        "give|at least",
    )


@pytest.mark.parametrize("folder", ["lab", "out"])
def test_figure_checks_its_folders_before_work(tmp_path, blocked, folder):
    folders = {"lab": str(tmp_path / "lab"), "out": str(tmp_path / "out"), folder: str(blocked)}
    refused(
        lambda: grid(scale="smoke", **folders),
        re.escape(str(blocked)),
        "choose another folder",
        error=OSError,
    )


# the command line


@pytest.fixture
def trainprove(monkeypatch, tmp_path):
    "Call the command, expected to fail before a notebook is executed; returns its lines."

    def executed(*args, **kwargs):
        pytest.fail("work began")

    monkeypatch.setattr(papermill, "execute_notebook", executed)
    monkeypatch.chdir(tmp_path)

    def call(*args):
        done = CliRunner().invoke(cli.main, ["figures", *args, "--lab", str(tmp_path / "lab")])
        assert done.exit_code != 0 and isinstance(done.exception, SystemExit), (
            done.output,
            done.exception,
        )
        return done.output.strip().splitlines()

    return call


ARGUMENTS = {
    "figure": (["fig99"], "'fig99'", "choose from .*fig6"),
    "scale": (["fig6", "--scale", "huge"], "'huge'", "smoke.*mini.*gpu.*paper"),
    "parameter": (["fig6", "-s", "nonsense=1"], "'nonsense'", "choose from scale, sources"),
    "one of several parameters": (["fig6", "-s", "N=5", "-s", "delta=1"], "'delta'", "choose"),
    "setting without a value": (["fig6", "--set", "delta0"], "'delta0'", "KEY=VALUE"),
    "setting that is no YAML": (["fig6", "--set", "rhos=[0, 1"], re.escape("'rhos=[0, 1'"), "YAML"),
    "jobs": (["fig6", "--jobs", "0"], "0 is not in the range x>=1"),
    "jobs in words": (["fig6", "--jobs", "two"], "'two' is not a valid int"),
}


@pytest.mark.parametrize("argument", ARGUMENTS)
def test_command_checks_its_arguments(trainprove, tmp_path, argument):
    arguments, *says = ARGUMENTS[argument]
    sentence(trainprove(*arguments, "--out", str(tmp_path / "out"))[-1], "^Error: ", *says)
    assert list(tmp_path.iterdir()) == []


def test_command_checks_all_figures_before_the_first(trainprove, monkeypatch, tmp_path):
    assert "'fig99'" in trainprove("fig6", "fig99")[-1]
    cell = nbformat.v4.new_code_cell('scale: str = "mini"', metadata={"tags": ["parameters"]})
    nbformat.write(
        nbformat.v4.new_notebook(
            cells=[cell],
            metadata={
                "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
            },
        ),
        tmp_path / "small.ipynb",
    )
    known = {**cli.experiments(), "small": tmp_path / "small.ipynb"}
    monkeypatch.setattr(cli, "experiments", lambda: known)
    sentence(
        trainprove("fig6", "small", "-s", "N=5")[-1],
        "^Error: small has no parameter .N.",
        "choose from scale",
    )
    sentence(
        trainprove("all", "-s", "nonsense=5")[-1],
        "^Error: no experiment has a parameter .nonsense.",
        "trainprove list",
    )


def test_output_folder_that_cannot_be_written(trainprove, blocked):
    sentence(
        trainprove("fig6", "--out", str(blocked))[-1],
        "^Error: cannot write to .*file/sub",
        "choose another folder",
    )


def test_experiments_that_are_not_there(trainprove, monkeypatch, tmp_path):
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "package" / "cli.py"))
    sentence(trainprove("fig6")[-1], "^Error: ", "checkout")


@pytest.fixture
def papermill_gives(monkeypatch):
    "Let papermill do this in place of executing a notebook."
    return lambda act: monkeypatch.setattr(
        papermill, "execute_notebook", lambda notebook, executed, **kwargs: act(notebook, executed)
    )


def run_fig6(tmp_path):
    done = CliRunner().invoke(
        cli.main,
        [
            "figures",
            "fig6",
            "--scale",
            "smoke",
            "--out",
            str(tmp_path / "out"),
            "--lab",
            str(tmp_path / "lab"),
        ],
    )
    assert done.exit_code != 0 and isinstance(done.exception, SystemExit), (
        done.output,
        done.exception,
    )
    return done.output.strip().splitlines()[-1]


def test_notebook_that_fails_is_one_sentence(papermill_gives, tmp_path):
    def act(notebook, executed):
        raise PapermillExecutionError(
            0, 1, "cell", "ValueError", "rho = 2: give a proportion from 0 to 1", ["Traceback"]
        )

    papermill_gives(act)
    sentence(run_fig6(tmp_path), "^Error: fig6 stopped: rho = 2: give")


@full
def test_full_output_folder(tmp_path):
    (tmp_path / "out/smoke/fig6").mkdir(parents=True)
    (tmp_path / "out/smoke/fig6/fig6.ipynb").symlink_to(
        "/dev/full"
    )  # papermill writes the notebook before it starts
    sentence(
        run_fig6(tmp_path),
        "^Error: cannot write to .*out/smoke/fig6",
        "No space left",
        "choose another folder|free",
    )


@full
def test_output_folder_that_fills_up_at_the_last_page(papermill_gives, tmp_path):
    (tmp_path / "out/smoke/fig6").mkdir(parents=True)
    (tmp_path / "out/smoke/fig6/fig6.html").symlink_to("/dev/full")
    papermill_gives(shutil.copy)
    sentence(
        run_fig6(tmp_path),
        "^Error: cannot write to .*out/smoke/fig6",
        "No space left",
        "choose another folder|free",
    )
    assert (tmp_path / "out/smoke/fig6/fig6.ipynb").exists()
