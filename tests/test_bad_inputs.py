"""What a user may get wrong, typed into the commands: one sentence, exit code 2, soon, and nothing lost or left.

Each case: what is done to a folder that is right, what is typed, and what the sentence must say."""

import json
import os
import re
import shutil
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import datasets
import nbformat
import numpy as np
import pandas as pd
import papermill
import pytest
import torch
from click.testing import CliRunner
from helpers import png as small_png
from papermill.exceptions import PapermillExecutionError
from safetensors.torch import load_file, save_file

from trainprove_nb import cli
from trainprove_nb.evidence.release_log import Recorder, encode, log_table
from trainprove_nb.lab.store import Store
from trainprove_nb.models.bundled import WEIGHTS

SECONDS = 20  # far more than any needs, for a machine that does other things as well
TEXTS = ["a cat", "a dog", "a red cat", "a big dog", "a wet cat", "an old dog"]
PNG = {"format": "PNG"}


# A folder in which all is right


def paint(prompts, seeds, side=32):
    "Pictures of a seed and a prompt: a colour of their own, and some grain."
    found = []
    for text, seed in zip(prompts, seeds, strict=True):
        rng = np.random.default_rng([seed % 2**32, sum(map(ord, text))])
        grain = rng.integers(0, 60, (side, side, 3))
        found.append(np.clip(rng.integers(0, 195, 3) + grain, 0, 255))
    return np.array(found, np.uint8)


def png(side=32):
    "A picture's file."
    return encode(paint(["x"], [9], side)[0], PNG)


BLACK = encode(np.zeros((32, 32, 3), np.uint8), PNG)


def imagefolder(folder, texts=TEXTS, seed=0):
    "Pictures with their prompts."
    folder.mkdir()
    for k, picture in enumerate(paint(texts, range(seed, seed + len(texts)))):
        (folder / f"{k}.png").write_bytes(encode(picture, PNG))
    rows = [json.dumps({"file_name": f"{k}.png", "text": t}) for k, t in enumerate(texts)]
    (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n")


FILES = {
    "log.yaml": "suspect: {model: mini-v2}\ncontrol: {rhos: []}\nreleased: {log: log}\n",
    "asked.yaml": "suspect: {model: answers}\ncontrol: {rhos: []}\nreleased: {log: log}\n"
    "test: {answers: 1}\n",
    "mine.yaml": "suspect: {adapter: mine:f}\ncontrol: {rhos: []}\nreleased: {log: log}\n",
    "theirs.yaml": "suspect: {model: theirs}\ncontrol: {rhos: []}\nreleased: {log: log}\n",
    "sent.yaml": "owned: {model: mini-v1, settings: {steps: 1}}\ncontrol: {rhos: []}\n"
    "suspect: {model: mini-v2, access: prompts}\nreleased: {log: sent}\n",
    "named.yaml": "suspect: {kind: classifier, model: names.csv, settings: {classes: [cat, dog]}}\n"
    "released: {log: log}\ncontrol: {rhos: []}\n",
    "bare.yaml": "owned: {model: mini-v1, trained_on: photos}\nsuspect: {model: mini-v2}\n"
    "lab: {scale: smoke}\n",
    "names.csv": "file_name,label\n" + "".join(f"{k:06d}.png,cat\n" for k in range(24)),
    "mine.py": "def f(prompts, seeds):\n    return None\n",
}


@pytest.fixture(scope="module")
def right(tmp_path_factory):
    "A log, pictures, answers, and a file of each kind."
    root = tmp_path_factory.mktemp("right") / "case"
    root.mkdir()
    keeper = Recorder(root / "log", key=bytes(range(32)), draw=paint, settings={"steps": 5})
    for k, text in enumerate(TEXTS):
        keeper.release(text, f"account {k % 2}")
    imagefolder(root / "sent", seed=100)
    imagefolder(root / "photos", [f"a photo {k}" for k in range(8)], seed=200)
    imagefolder(root / "answers", seed=300)
    (root / "models/mine").mkdir(parents=True)
    for name, text in FILES.items():
        (root / name).write_text(text)
    return root


class Service(BaseHTTPRequestHandler):
    "Replies with what the test wants, whatever is asked."

    reply = (200, "text/plain", b"")

    def do_POST(self):
        self.rfile.read(int(self.headers.get("content-length", 0)))
        status, kind, body = Service.reply
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def address():
    "Of a service on this machine."
    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/x"
    server.shutdown()
    server.server_close()


# What is done to it


def write(path, content):
    "Write a file."

    def do(root):
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode() if isinstance(content, str) else content)

    return do


def both(*acts):
    "One thing, then the next."
    return lambda root: [act(root) for act in acts]


def without(*paths):
    "Files or folders are lost."
    return lambda root: [
        shutil.rmtree(root / p) if (root / p).is_dir() else (root / p).unlink() for p in paths
    ]


def cut(path, size):
    "A file of which only the beginning was copied."
    return lambda root: os.truncate(root / path, size)


def row(folder, **values):
    "The second line of a metadata.jsonl says something else."

    def do(root):
        file = root / folder / "metadata.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        rows[1].update(values)
        file.write_text("".join(json.dumps(r) + "\n" for r in rows))

    return do


def entry(change):
    "The third line of a log says something else."

    def do(root):
        file = root / "log/lines.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        change(lines[2])
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))

    return do


def table(change):
    "A log as a table, changed."

    def do(root):
        rows = log_table(str(root / "log"))
        (root / "log/lines.jsonl").unlink()
        rows = change(rows)
        rows.to_parquet(root / "log/log.parquet")

    return do


def all_of(folder, content):
    "All pictures of a folder are the same file."
    return lambda root: [f.write_bytes(content) for f in (root / folder).glob("*.png")]


def copies(side):
    "Pictures of the log take the place of the answers."

    def do(root):
        rows = log_table(str(root / "log"))
        for k, text in enumerate(TEXTS):
            row = rows[(rows.side == side) & (rows.prompt == text)].iloc[0]
            shutil.copy(root / "log" / row.file, root / f"answers/{k}.png")

    return do


def alone(root):
    "A log of which only the first request was kept."
    file = root / "log/lines.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:2]))


def swapped(root):
    "A classifier that knows all, under the other names."
    told = ["dog" if "cat" in text else "cat" for text in TEXTS for _ in range(4)]
    rows = [f"{k:06d}.png,{name}\n" for k, name in enumerate(told)]
    (root / "names.csv").write_text("file_name,label\n" + "".join(rows))


def saved(root):
    "The log's folder as `save_to_disk` writes it, and cut."
    shutil.rmtree(root / "sent")
    images = [{"bytes": encode(x, PNG), "path": None} for x in paint(TEXTS, range(6))]
    ds = datasets.Dataset.from_dict({"image": images, "text": TEXTS})
    ds.cast_column("image", datasets.Image()).save_to_disk(str(root / "sent"))
    os.truncate(next((root / "sent").glob("*.arrow")), 900)


def linked(root):
    "A picture that is a link to one elsewhere."
    (root / "sent/1.png").unlink()
    (root / "sent/1.png").symlink_to(root / "photos/1.png")


def bomb():
    "A PNG that says it has 13,000 × 13,000 pixels."
    data = bytearray(small_png())
    data[16:24] = (13_000).to_bytes(4, "big") * 2
    data[29:33] = __import__("zlib").crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def theirs(*acts):
    "A copy of a model, changed."

    def do(root):
        shutil.copytree(WEIGHTS / "mini-v2", root / "theirs")
        for act in acts:
            act(root)

    return do


def config(path, **values):
    "A JSON of that model says something else."

    def do(root):
        file = root / "theirs" / path
        file.write_text(json.dumps({**json.loads(file.read_text()), **values}))

    return do


def weights(part, change):
    "The weights of a part of that model, changed."

    def do(root):
        file = next((root / "theirs" / part).glob("*.safetensors"))
        save_file(change(load_file(file)), file)

    return do


def zeros(found):
    return {name: torch.zeros_like(w) for name, w in found.items()}


def silenced(found):
    "A network that answers all with zeros."
    return {name: torch.zeros_like(w) if "conv_out" in name else w for name, w in found.items()}


def diverged(found):
    return {name: torch.full_like(w, torch.nan) for name, w in found.items()}


def half(found):
    return dict(list(found.items())[::2])


def renamed(found):
    return {f"module.{name}": w for name, w in found.items()}


def reshaped(found):
    return {name: w[:1].contiguous() for name, w in found.items()}


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
UNET = "theirs/unet/diffusion_pytorch_model.safetensors"


def recipe(**values):
    "A recipe of a service."
    told = {"url": "https://x.example/d", "body": {"prompt": "{prompt}"}, "picture": "image"}
    return write("r.json", json.dumps(told | values))


def of_another(root):
    "Kept answers in the lab at the place of others."
    store = Store(root / "lab")
    made = store.get({"kind": "audit-answers", "a": 1}, lambda f, _: (f / "x").write_text("x"))
    (made / "recipe.json").write_text("{")


def module(text):
    "A function of one's own."
    return write("mine.py", "import numpy as np\n" + text)


def nothing(root):
    "All is as it was."


# What is typed


def _words(command, file, changes):
    return ["audit", command, file, *(word for c in changes for word in ("-s", c))]


def check(file, *changes):
    return _words("check", file, changes)


def run(file, *changes):
    return _words("run", file, changes)


def fig(*changes, name="fig6", more=()):
    return ["figures", name, "--scale", "smoke", *more, *(w for c in changes for w in ("-s", c))]


def suspect(settings):
    return check("log.yaml", "suspect={model: https://x.example/d, settings: " + settings + "}")


SENT, LOG, ASKED, NAMED = run("sent.yaml"), check("log.yaml"), run("asked.yaml"), run("named.yaml")
THEIRS, MINE = run("theirs.yaml"), run("mine.yaml")
RECIPE = check("log.yaml", "suspect={model: r.json}")
URL = "suspect={model: ADDRESS, settings: {tries: 1, timeout: 1}}"
CLASSES = "suspect={kind: classifier, model: ADDRESS, settings: {classes: [cat, dog]}}"

COMMANDS = {
    "a command with a typing error": (nothing, ["audit", "chekc", "log.yaml"], "chekc.*check"),
    "a figure without its command": (nothing, ["fig6"], "No such command 'fig6'"),
    "two files": (nothing, ["audit", "check", "log.yaml", "sent.yaml"], "unexpected extra"),
    "a picture for a file": (nothing, check("sent/0.png"), "0.png is not UTF-8"),
    "a link to itself": (
        lambda root: (root / "a.yaml").symlink_to("a.yaml"),
        check("a.yaml"),
        "no file a.yaml",
    ),
    "a pipe": (lambda root: os.mkfifo(root / "a.yaml"), check("a.yaml"), "no file a.yaml"),
    "an endless device": (nothing, check("/dev/zero"), "no file /dev/zero"),
    "a key of dots": (nothing, check("log.yaml", "test..level=1"), "this is no key"),
    "a key within a value": (nothing, check("log.yaml", "test.level.x=3"), "test.level.*number"),
    "a key twice": (
        nothing,
        check("log.yaml", "test.level=0.01", "test.level=0.2"),
        "-s test.level: this takes the place of -s test.level before it: keep one",
    ),
    "a key, and all that it stands in": (
        nothing,
        check("log.yaml", "test.level=0.01", "test={draws: 999}"),
        "-s test: this takes the place of -s test.level before it: keep one",
    ),
    "half a character": (nothing, check("log.yaml", "suspect.model=\udcff"), "cannot be printed"),
    "questions into no folder": (
        nothing,
        ["audit", "questions", "log.yaml", "--to", "no/q.csv"],
        "--to no/q.csv.*folder that is there",
    ),
    "questions into a folder": (
        nothing,
        ["audit", "questions", "log.yaml", "--to", "sent"],
        "--to sent.*give a file",
    ),
    "questions over the audit's file": (
        nothing,
        ["audit", "questions", "log.yaml", "--to", "log.yaml"],
        "no table of questions: choose another",
    ),
    "questions over the log": (
        nothing,
        ["audit", "questions", "sent.yaml", "--to", "sent/metadata.jsonl"],
        "no table of questions: choose another",
    ),
    "questions to a classifier": (
        nothing,
        ["audit", "questions", "named.yaml"],
        "it is shown pictures",
    ),
    "questions of no log": (nothing, ["audit", "questions", "bare.yaml"], "no section released"),
    "questions of a log that is not there": (
        without("log"),
        ["audit", "questions", "log.yaml"],
        "there is no folder .*log",
    ),
    "questions for nobody": (
        nothing,
        ["audit", "questions", "log.yaml", "-s", "released.account=bob"],
        "choose from account 0, account 1",
    ),
    "questions of a cut log": (
        write("log/lines.jsonl", "{}\n{\n"),
        ["audit", "questions", "log.yaml"],
        "line 1 .*cannot be read: take the log from a copy",
    ),
    "to forget what was cut": (
        of_another,
        ["audit", "forget", "log.yaml", "--prompt", "cat"],
        "recipe.json was cut: delete",
    ),
    "a demo in a file": (
        write("f", "x"),
        ["audit", "demo", "--folder", "f", "--scale", "smoke"],
        "--folder f.*is a file: choose another",
    ),
    "a demo whose lab is a file": (
        write("f", "x"),
        ["audit", "demo", "--lab", "f", "--scale", "smoke"],
        "cannot write to .*/f .*choose another folder",
    ),
    "a demo at another scale": (nothing, ["audit", "demo", "--scale", "paper"], "'paper'"),
    "a new case in a file": (write("f", "x"), ["audit", "new", "f/g"], "cannot write to f/g"),
    "a new case with a blank account": (
        nothing,
        ["audit", "new", "c", "--account", " "],
        "released.account = ' ': give a text",
    ),
}

FOLDERS = {
    "a report in the log": (nothing, check("log.yaml", "out=log"), "lies in .* released.log"),
    "a report in the answers": (
        nothing,
        check("asked.yaml", "out=answers/report"),
        "lies in the folder of suspect.model",
    ),
    "a lab in the log": (nothing, check("sent.yaml", "lab.folder=sent"), "lies in .*released.log"),
    "a lab in the training set": (
        nothing,
        check("bare.yaml", "lab.folder=photos/lab"),
        "lies in .*owned.trained_on",
    ),
    "a name too long": (nothing, check("log.yaml", "out=" + "x" * 300), "too long a name"),
    "the log mixed into itself": (
        nothing,
        check("sent.yaml", "control={rhos: [0.5], others: sent}"),
        "this is released.log too.*give another",
    ),
    "the log as its own suspect": (
        nothing,
        check("sent.yaml", "suspect={model: sent}"),
        "this is released.log too.*would be the log itself",
    ),
    "the owner as the suspect": (
        theirs(),
        check("sent.yaml", "owned.model=theirs", "suspect.model=theirs"),
        "this is owned.model too.*no test is needed",
    ),
    "the suspect as its base": (
        theirs(),
        check("theirs.yaml", "suspect.base=theirs"),
        "this is suspect.model too.*give another",
    ),
    "own pictures as answers": (
        nothing,
        check("bare.yaml", "suspect.model=photos"),
        "this is owned.trained_on too",
    ),
    "half a disk as answers": (
        nothing,
        check("log.yaml", "suspect.model=/usr"),
        "is not a diffusers model folder|more than 2,000 folders",
    ),
    "a mistyped folder, of a hub's form": (
        nothing,
        check("sent.yaml", "owned.model=modles/mine"),
        "there is no .*modles/mine: give a folder",
    ),
    "another mistyped folder": (
        nothing,
        check("log.yaml", "suspect.model=mdoels/mine"),
        "there is no .*mdoels/mine: give a folder",
    ),
    "a function where there is no log": (
        nothing,
        check("bare.yaml", "suspect={adapter: mine:f}"),
        "no function is asked: give suspect.model",
    ),
}

DATA = {
    "a dataset that was cut": (saved, SENT, "could not be read as a saved dataset.*copy it again"),
    "a caption that is a list": (
        row("sent", text=["a"]),
        SENT,
        "1.png .*a list of 1.*needs a text",
    ),
    "a caption that is a number": (row("sent", text=7), SENT, "1.png .* is 7.*needs a text"),
    "a caption that is blank": (row("sent", text="  "), SENT, "has no prompt: every one needs"),
    "a caption that is a book": (
        row("sent", text="x" * 10**6),
        SENT,
        "has 1,000,000 characters: give at most 20,000",
    ),
    "half a character in a caption": (row("sent", text="\ud800"), SENT, "half a character"),
    "a way up": (row("sent", file_name="../photos/1.png"), SENT, "leads out of .*sent: copy"),
    "an absolute way": (row("sent", file_name="/etc/passwd"), SENT, "leads out of .*sent: copy"),
    "a link out": (linked, SENT, "1.png leads out of .*sent: copy the file"),
    "a name with a zero": (row("sent", file_name="a\0.png"), SENT, "is no name of a file"),
    "a name of 400 letters": (row("sent", file_name="x" * 400), SENT, "is no name of a file"),
    "a name of no picture": (row("sent", file_name="."), SENT, "names sent, which is not there"),
    "a picture that is a pipe": (
        both(without("sent/1.png"), lambda root: os.mkfifo(root / "sent/1.png")),
        SENT,
        "names 1.png, which is not there",
    ),
    "a picture of no bytes": (write("sent/0.png", ""), SENT, "'a cat'.*it is no picture.*replace"),
    "a page in place of a picture": (
        write("sent/1.png", "<html>403</html>"),
        SENT,
        "the picture of 'a dog' .*it is no picture.*replace or remove it",
    ),
    "a pointer in place of a picture": (write("sent/1.png", LFS), SENT, "'a dog'.*no picture"),
    "a picture that was cut": (cut("sent/1.png", 900), SENT, "'a dog' .*truncated.*replace"),
    "a picture of 13,000 pixels a side": (
        write("sent/1.png", bomb()),
        SENT,
        "13000×13000 pixels are more than",
    ),
    "one picture over and over": (all_of("sent", png()), SENT, "all 6 pictures.*are the same"),
    "a picture of another size": (
        write("sent/0.png", png(48)),
        SENT,
        r"released picture is PNG \(48, 48\), a fresh one PNG \(32, 32\)",
    ),
    "Latin-1": (
        write("sent/metadata.jsonl", '{"file_name": "0.png", "text": "é"}'.encode("latin-1")),
        SENT,
        "metadata.jsonl is not UTF-8.*save it again",
    ),
    "UTF-16": (
        write("sent/metadata.jsonl", '{"file_name": "0.png", "text": "é"}'.encode("utf-16")),
        SENT,
        "metadata.jsonl is not UTF-8.*save it again",
    ),
    "a folder called metadata.jsonl": (
        both(without("sent/metadata.jsonl"), lambda root: (root / "sent/metadata.jsonl").mkdir()),
        SENT,
        "metadata.jsonl cannot be read",
    ),
    "two tables": (
        write("sent/metadata.csv", "file_name,text\n0.png,a\n"),
        SENT,
        "has metadata.csv and metadata.jsonl: keep the one that is right",
    ),
    "parquet whose pictures are numbers": (
        both(
            without("sent/metadata.jsonl"),
            lambda root: pd.DataFrame({"image": [5] * 6, "text": TEXTS}).to_parquet(
                root / "sent/a.parquet"
            ),
        ),
        SENT,
        "pair 0 in .*sent has no picture",
    ),
    "parquet whose pictures lie elsewhere": (
        both(
            without("sent/metadata.jsonl"),
            lambda root: pd.DataFrame(
                {"image": [{"bytes": None, "path": "../photos/0.png"}] * 6, "text": TEXTS}
            ).to_parquet(root / "sent/a.parquet"),
        ),
        SENT,
        "../photos/0.png leads out of",
    ),
    "control's pictures that are none": (
        both(write("photos/3.png", "x")),
        run("log.yaml", "control={rhos: [0.5], others: photos, base: mini-v1}"),
        "3.png in .*photos cannot be decoded",
    ),
    "a log whose prompt is a list": (
        entry(lambda line: line.update(prompt=["a"])),
        LOG,
        r"prompt is \['a'\]: a text is needed",
    ),
    "a log whose prompt is blank": (
        entry(lambda line: line.update(prompt="")),
        LOG,
        "prompt is '': a text is needed",
    ),
    "a log of three sides": (
        entry(lambda line: line["pictures"][0].update(side="given")),
        LOG,
        "side is 'given': it is released or withheld",
    ),
    "a log that names a file elsewhere": (
        entry(lambda line: line["pictures"][0].update(file="../sent/0.png")),
        ["audit", "questions", "log.yaml"],
        "../sent/0.png leads out of .*log",
    ),
    "a log whose pictures were changed": (
        lambda root: [f.write_bytes(png()) for f in (root / "log/pictures").iterdir()],
        run("asked.yaml"),
        "is not the picture that was logged: take it from a copy",
    ),
    "a table of a log without prompts": (
        table(lambda rows: rows.assign(prompt=None)),
        LOG,
        "prompt is None: a text is needed",
    ),
    "a table of a log of three sides": (
        table(lambda rows: rows.assign(side="given")),
        LOG,
        "side is 'given'",
    ),
    "a table of a log without sides": (
        table(lambda rows: rows.drop(columns="side")),
        LOG,
        r"lacks the column\(s\) side: give a log",
    ),
    "a log of one request": (
        alone,
        LOG,
        r"so few requests \(1\) no p-value is below 0.25.*longer log",
    ),
    "a budget of one question": (
        nothing,
        run("asked.yaml", "test.questions=1"),
        r"so few requests can be asked for \(1\) that no p-value is below 0.25",
    ),
    "a table of a log that was cut": (
        both(table(lambda rows: rows), cut("log/log.parquet", 200)),
        LOG,
        "log.parquet cannot be read .*take it from a copy",
    ),
}

MODELS = {
    "an index that was cut": (theirs(cut("theirs/model_index.json", 20)), THEIRS, "copy it again"),
    "an index that is a list": (
        theirs(write("theirs/model_index.json", "[]")),
        THEIRS,
        "model_index.json names no class of pipelines.*copy it again",
    ),
    "an index that is a pointer": (
        theirs(write("theirs/model_index.json", LFS)),
        THEIRS,
        "model_index.json names no class of pipelines",
    ),
    "an index of code of its own": (
        theirs(config("model_index.json", unet=["mine", "Net"])),
        THEIRS,
        "it has code of its own, which is not run",
    ),
    "a class that there is not": (
        theirs(config("model_index.json", _class_name="NoSuchPipeline")),
        THEIRS,
        "a class that diffusers does not have",
    ),
    "a pipeline that wants a picture": (
        theirs(config("model_index.json", _class_name="StableDiffusionImg2ImgPipeline")),
        THEIRS,
        "wants image.*give a text-to-image pipeline",
    ),
    "no network that draws": (theirs(without("theirs/unet")), THEIRS, "theirs could not be loaded"),
    "no weights": (theirs(without(UNET)), THEIRS, "no file named .*copy it again"),
    "weights that are a pointer": (theirs(write(UNET, LFS)), THEIRS, "git-lfs"),
    "weights that were cut": (theirs(cut(UNET, 10**5)), THEIRS, "weights was cut.*copy it again"),
    "weights that diverged": (theirs(weights("unet", diverged)), THEIRS, "unet are not finite"),
    "an encoder that diverged": (
        theirs(weights("text_encoder", diverged)),
        THEIRS,
        "text_encoder are not finite",
    ),
    "weights that are all zero": (
        theirs(weights("unet", zeros)),
        THEIRS,
        r"all \d+ weights of its unet are zero",
    ),
    "a last layer of zeros": (
        theirs(weights("unet", silenced)),
        THEIRS,
        "the network answers all pictures alike",
    ),
    "half a network": (theirs(weights("unet", half)), THEIRS, "of its unet are in no file"),
    "half an encoder": (theirs(weights("text_encoder", half)), THEIRS, "text_encoder are in no"),
    "half a decoder": (theirs(weights("vae", half)), THEIRS, "of its vae are in no file"),
    "renamed tensors": (theirs(weights("unet", renamed)), THEIRS, "of its unet are in no file"),
    "tensors of other shapes": (theirs(weights("unet", reshaped)), THEIRS, "other shapes than its"),
    "no tokenizer": (theirs(without("theirs/tokenizer")), THEIRS, "its file of words is missing"),
    "no words of the tokenizer": (
        theirs(without("theirs/tokenizer/tokenizer.json")),
        THEIRS,
        "its file of words is missing",
    ),
    "no scheduler": (theirs(without("theirs/scheduler")), THEIRS, "could not be loaded"),
    "a pickle": (write("m.pth", "x"), check("log.yaml", "suspect.model=m.pth"), "may run code"),
    "an archive": (write("m.zip", "x"), check("log.yaml", "suspect.model=m.zip"), "is a .zip"),
    "weights of no known kind": (
        lambda root: save_file({"a": torch.zeros(2)}, root / "a.safetensors"),
        run("log.yaml", "suspect.model=a.safetensors"),
        "names of no known kind.*copy it again",
    ),
    "an adapter whose card is cut": (
        both(
            lambda root: (root / "l").mkdir(),
            lambda root: save_file(
                {"a.lora_A.weight": torch.zeros(2, 2)}, root / "l/adapter_model.safetensors"
            ),
            write("l/adapter_config.json", "{"),
        ),
        check("log.yaml", "suspect.model=l"),
        "adapter_config.json .*cannot be read.*name its base",
    ),
    "a card that cannot be had": (
        nothing,
        check("log.yaml", "suspect.settings={device: gpu}"),
        "device = 'gpu': give cpu, cuda",
    ),
    "a batch of none": (
        nothing,
        check("log.yaml", "suspect.settings={batch_size: 0}"),
        "batch_size = 0: give a whole number",
    ),
}

SERVICES = {
    "a service that is not there": (
        nothing,
        run("log.yaml", "suspect={model: 'http://127.0.0.1:9/x', settings: {tries: 1}}"),
        "nobody answers there",
    ),
    "a page": ((200, "text/html", b"<html>"), run("log.yaml", URL), "html.* is not a picture"),
    "no bytes": ((200, "application/json", b""), run("log.yaml", URL), "no picture, and no JSON"),
    "a no": ((401, "application/json", b'{"error": "bad key"}'), run("log.yaml", URL), "bad key"),
    "half a picture": ((200, "image/png", png()[:900]), run("log.yaml", URL), "truncated"),
    "a huge picture": ((200, "image/png", bomb()), run("log.yaml", URL), "13000×13000"),
    "a class that nobody knows": (
        (200, "application/json", b'{"label": "zebra"}'),
        run("named.yaml", CLASSES),
        "'zebra'.*none of the classes",
    ),
    "a timeout in words": (nothing, suspect("{timeout: long}"), "timeout = 'long': give seconds"),
    "no time at all": (nothing, suspect("{timeout: -1}"), "timeout = -1: give seconds"),
    "no try": (nothing, suspect("{tries: 0}"), "tries = 0: give a whole number"),
    "tries that are true": (nothing, suspect("{tries: true}"), "tries = True: give a whole"),
    "a pause before now": (nothing, suspect("{pause: -1}"), "pause = -1: give seconds"),
    "a pace in words": (nothing, suspect("{pace: fast}"), "pace = 'fast': give numbers"),
    "a pace an hour": (nothing, suspect("{pace: {per_hour: 3}}"), "give numbers for some of"),
    "a pace of none": (nothing, suspect("{pace: {per_minute: 0}}"), "per_minute = 0: give"),
    "half a budget": (nothing, suspect("{pace: {budget: 1.5}}"), "budget = 1.5: give .*whole"),
    "a million at once": (nothing, suspect("{pace: {at_once: 1000000}}"), "at_once = 1000000"),
    "a header with a space": (nothing, suspect("{headers: {a b: c}}"), "header 'a b' cannot be"),
    "a header in no letters": (nothing, suspect("{headers: {X: '—'}}"), "header 'X' cannot be"),
    "an address with a space": (
        nothing,
        check("log.yaml", "suspect.model='http://a b/c'"),
        "begins no address of a service.*without spaces",
    ),
    "an address without its beginning": (
        nothing,
        check("log.yaml", "suspect.model=www.example.com/draw"),
        "begin it with http:// or https://",
    ),
    "a recipe that was cut": (write("r.json", "{"), RECIPE, "r.json is no recipe"),
    "a recipe of a list": (write("r.json", "[1]"), RECIPE, "r.json is no recipe"),
    "a recipe of one key more": (recipe(colour="red"), RECIPE, "colour.*it is JSON with url"),
    "a recipe to a number": (recipe(url=5), RECIPE, "recipe's url is '5': give a text"),
    "a recipe to a file": (recipe(url="file:///etc/{prompt}"), RECIPE, "begins no address"),
    "a recipe that deletes": (recipe(method="DELETE"), RECIPE, "method is 'DELETE': choose"),
    "a recipe with a list of headers": (recipe(headers=["a"]), RECIPE, "headers is .*give names"),
    "a recipe with a number in a header": (recipe(headers={"X": 5}), RECIPE, "header X cannot"),
    "a recipe with a line in a header": (recipe(headers={"X": "a\nb"}), RECIPE, "header X cannot"),
    "a recipe with a list of options": (recipe(options=["a"]), RECIPE, "options is .*give names"),
    "a recipe that does not ask": (recipe(body={}), RECIPE, "sends no {prompt}"),
}

FUNCTIONS = {
    "a function of nothing": (module("def f():\n  pass\n"), MINE, "it cannot be asked.*prompts"),
    "a function that gives nothing": (nothing, MINE, "answered with None.*expected uint8"),
    "a function that gives shares": (
        module("def f(p, s): return np.random.rand(len(p), 32, 32, 3)\n"),
        MINE,
        "float64.*expected uint8",
    ),
    "a function that gives too few": (
        module("def f(p, s): return np.zeros((1, 32, 32, 3), np.uint8)\n"),
        MINE,
        "gave 1 pictures for 4 prompts",
    ),
    "a function that breaks": (
        module("def f(p, s): raise RuntimeError('a\\nb')\n"),
        MINE,
        "mine:f failed when it was asked .*a b",
    ),
    "a function that leaves": (
        module("def f(p, s): raise SystemExit(3)\n"),
        MINE,
        "mine:f failed when it was asked",
    ),
    "a module that asks the user": (
        module("key = input('key? ')\ndef f(p, s): return 0\n"),
        MINE,
        "suspect.adapter.*EOF",
    ),
    "a function without that setting": (
        nothing,
        check("mine.yaml", "suspect={adapter: mine:f, settings: {token: 3}}"),
        "it cannot be asked",
    ),
}

ANSWERS = {
    "answers to others": (row("answers", text="zebra"), ASKED, "0 answers to 'a dog'"),
    "answers that are what was released": (
        copies("released"),
        ASKED,
        "3.png to 'a big dog' is, pixel for pixel, the released picture .*6 such of 6 answers",
    ),
    "answers that were withheld": (
        copies("withheld"),
        ASKED,
        "is, pixel for pixel, the withheld picture .*folders were mixed up",
    ),
    "one class for all": (nothing, NAMED, "same score, in every prompt.*in place of labels"),
    "classes in the wrong order": (swapped, NAMED, "its 'cat' is our 'dog'.*give mapping"),
    "answers that are too few": (nothing, run("asked.yaml", "test.answers=5"), "2 are needed"),
    "an answer that was cut": (cut("answers/1.png", 900), ASKED, "1.png cannot be decoded"),
    "one answer to all": (all_of("answers", png()), ASKED, "given to other prompts too"),
    "black answers": (all_of("answers", BLACK), ASKED, "all black"),
    "answers of two sizes": (write("answers/1.png", png(48)), ASKED, "2 different sizes"),
    "an answer elsewhere": (row("answers", file_name="../sent/1.png"), ASKED, "leads out of"),
    "an answer of a long name": (row("answers", file_name="x" * 400), ASKED, "no name of a file"),
    "names of another class": (
        write("names.csv", "file_name,label\n000000.png,zebra\n"),
        NAMED,
        "'zebra'.*none of the classes",
    ),
    "names that are missing": (
        write("names.csv", "file_name,label\n000000.png,cat\n"),
        NAMED,
        "answers to 1 pictures, and the log has 24: collect one to each",
    ),
    "names twice": (
        write("names.csv", "file_name,label\n" + "000000.png,cat\n" * 2),
        NAMED,
        "2 rows for 000000.png",
    ),
    "a row that is short": (write("names.csv", "file_name,label\n0.png\n"), NAMED, "row 1 of"),
    "no names": (write("names.csv", ""), NAMED, "names.csv is empty"),
    "a mapping that is a number": (
        nothing,
        run("named.yaml", "suspect.settings.mapping=5"),
        "mapping = 5: give names",
    ),
    "files that are a number": (
        nothing,
        run("named.yaml", "suspect.settings.files=5"),
        "files = 5: give a list",
    ),
    "a class twice": (
        nothing,
        run("named.yaml", "suspect.settings.classes=[cat, Cat]"),
        "'cat' comes twice",
    ),
    "a name that the hub cannot have": (
        nothing,
        run("named.yaml", "suspect.model='hub:a b/c'"),
        "hub:owner/name",
    ),
    "a sheet": (write("n.xlsx", "PK"), run("named.yaml", "suspect.model=n.xlsx"), "no form of"),
}

KNOBS = {
    text: (nothing, fig(text), says)
    for text, says in {
        "sources=3": "sources = 3: give a list",
        "sources={}": "sources = {}: give a list",
        "sources=[]": "sources = .*is empty: name something",
        "sources=[[mini-v1]]": "has the item .*give texts",
        "sources=[mini-v1, mini-v1]": "has twice 'mini-v1'",
        "sources=[mini-v9]": "unknown source 'mini-v9': choose from",
        "strategies=detection": "strategies = 'detection': give a list",
        "strategies=[detection, detection]": "has twice 'detection'",
        "rhos=[.nan]": "has the item nan",
        "rhos=[2]": "rho = 2: give a list",
        "suspects=1000000000": "suspects = 1000000000: give a whole number",
        "N=true": "N = True: give a whole number",
        "N=2.5": "N = 2.5: give a whole number",
        "N=1000000000": "N = 1000000000 key samples",
        "delta0=.inf": "delta0 = inf: give a number",
        "delta0=true": "delta0 = True: give a number",
        "delta0=null": "delta0 = None: give a number",
        "delta0=1e-3": "delta0 = '1e-3': give a number .*YAML reads 0.001",
        "fpr=2": "fpr = 2: give a rate",
        "metric=3": "metric = 3: give a text",
        "metric=l2": "unknown distance 'l2': choose from",
        "metric=sscd:names.csv": "names.csv is not a TorchScript network",
        "knobs={size: 16, size: 24}": "'size' is given twice in a mapping: keep one",
        "knobs=null": "knobs = None: give a mapping",
        "knobs={suspect_training: {ema: 2}}": "ema = 2",
        "knobs={suspect_training: {dropout: 2}}": "dropout = 2",
        "knobs={size: 1000000}": "size = 1000000: give",
        "redraw=5": "redraw = 5: give a text",
        "redraw=sent": "no fig6.json in sent",
        "backend=dask:tcp://127.0.0.1:9": "nobody answers at|needs the library distributed",
        "jobs=3": "jobs has an option of its own",
        "knobs=" + "[" * 500 + "]" * 500: "not YAML that can be read",
        "N=" + "9" * 5000: "not YAML that can be read",
        "N=!!python/object:os.system {}": "not YAML that can be read",
    }.items()
}

FIGURES = {
    "a parameter twice": (nothing, fig("N=4", "N=5"), "N is given twice: keep one of them"),
    "a hundred thousand workers": (nothing, fig(more=["--jobs", "100000"]), "jobs = 100,000"),
    "results in a file": (write("f", "x"), fig(more=["--out", "f"]), "cannot write to .*/f/"),
    "a lab that is a file": (write("f", "x"), fig(more=["--lab", "f"]), "cannot write to .*/f "),
    "no discriminators": (nothing, fig("discriminators=3", name="table1"), "give a list"),
    "numbers of keys that are one": (nothing, fig("Ns=3", name="fig7"), "Ns = 3: give a list"),
    "a number of keys that is true": (nothing, fig("Ns=[true]", name="fig7"), "the item True"),
    "lengths in words": (nothing, fig("lengths=long", name="hard"), "lengths = 'long': give"),
    "a suspect that is a number": (nothing, fig("suspect=5", name="audit_generator"), "= 5: give"),
    "a base that is a number": (nothing, fig("base=5", name="audit_generator"), "base = 5: give"),
    "results that are not there": (
        nothing,
        fig("results=nowhere", name="claims"),
        "no results of fig6",
    ),
    "a plan of sources=3": (nothing, fig("sources=3", more=["--plan"]), "sources = 3: give a list"),
    "a plan within infinity": (nothing, fig("delta0=.inf", more=["--plan"]), "delta0 = inf"),
    "seconds in words": (nothing, fig(more=["--plan", "--seconds", "step=fast"]), "step = 'fast'"),
    "a unit that there is not": (nothing, fig(more=["--plan", "--seconds", "s=1"]), "unit 's'"),
    "no lab": (nothing, ["status", "--lab", "nowhere"], "no lab at .*nowhere"),
    "settings of no figure": (nothing, ["status", "-s", "N=5"], "name a figure too"),
    "a status of another parameter": (nothing, ["status", "fig6", "-s", "n=1"], "no parameter 'n'"),
}

CASES = COMMANDS | FOLDERS | DATA | MODELS | SERVICES | FUNCTIONS | ANSWERS | KNOBS | FIGURES
OWN_WORDS = FUNCTIONS | {"a header in no letters": 0}  # here a user's own exception is told


def executed(notebook, out, parameters, **_):
    "A notebook's cells in this process, as papermill would let a kernel run them."
    names = {}
    for cell in nbformat.read(notebook, 4).cells:
        if cell.cell_type == "code":
            try:
                exec(compile(cell.source, "cell", "exec"), names)
            except Exception as e:
                raise PapermillExecutionError(0, 1, "", type(e).__name__, str(e), []) from None
        if "parameters" in cell.metadata.get("tags", []):
            names.update(parameters)
    pytest.fail("it was done")


def state(root):
    "What lies in a folder: each file with its size and time; locks and compiled code left out."
    passing = re.compile(r"\.lock$|__pycache__")
    files = [p for p in root.rglob("*") if not p.is_dir() or p.is_symlink()]
    seen = {str(p.relative_to(root)): p.lstat() for p in files if not passing.search(str(p))}
    return {name: (s.st_size, s.st_mtime_ns) for name, s in seen.items()}


@pytest.fixture
def place(right, tmp_path, monkeypatch):
    "A copy of the folder, to work in."
    root = shutil.copytree(right, tmp_path / "case")
    monkeypatch.chdir(root)
    monkeypatch.setattr(papermill, "execute_notebook", executed)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return root


def test_there_are_many():
    assert len(CASES) >= 120
    parts = (COMMANDS, FOLDERS, DATA, MODELS, SERVICES, FUNCTIONS, ANSWERS, KNOBS, FIGURES)
    assert len(CASES) == sum(map(len, parts))


@pytest.mark.parametrize("name", CASES, ids=lambda name: name[:60])
def test_it_is_one_sentence_soon_and_nothing_is_lost(place, address, name):
    act, words, says = CASES[name]
    if isinstance(act, tuple):
        Service.reply, act = act, nothing
    act(place)
    before, began = state(place), time.monotonic()
    words = [word.replace("ADDRESS", address) for word in words]
    done = CliRunner().invoke(cli.main, words)
    assert done.exit_code == 2 and isinstance(done.exception, SystemExit), done.output[-500:]
    assert time.monotonic() - began < SECONDS
    sentence = re.split(r"(?:^|\n)Error: ", done.output)[-1].strip()
    assert re.search(says, sentence), sentence
    assert len(sentence) <= 420 + 2 * len(str(place)) and sentence.count("\n") <= 2, sentence
    assert "Traceback" not in done.output and " object at 0x" not in sentence
    if name not in OWN_WORDS:
        assert not re.search(r"\b[A-Z]\w+(Error|Exception)\b", sentence), sentence
    assert {k: v for k, v in state(place).items() if k in before} == before
    assert [k for k in state(place) if k not in before and not k.startswith("lab/")] == []
