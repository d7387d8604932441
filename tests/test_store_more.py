"What is read from a store, or loaded as a model, is what was made: whole, its own, and nothing besides."

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from helpers import refused
from test_lab import ANSWER, PAIRS_RECIPE, fails, make

from trainprove_nb.lab.engine import Lab
from trainprove_nb.lab.store import DamagedArtifact, Store, file_digest
from trainprove_nb.models.bundled import WEIGHTS
from trainprove_nb.models.classifiers import classifier
from trainprove_nb.models.pipelines import load_model
from trainprove_nb.models.whole import check_weights

OTHER = {"kind": "demo", "question": "death"}


def read_again(root, recipe, *says):
    "Check that a new process would refuse an artifact."
    refused(lambda: Store(root).get(recipe, fails), *says, error=DamagedArtifact)


# Its own


def test_another_artifact_at_a_recipes_path(tmp_path):
    store = Store(tmp_path)
    shutil.copytree(store.get(ANSWER, make), store.path(OTHER))
    read_again(tmp_path, OTHER, "recipe.json", "another's", f"delete {store.path(OTHER)}")
    assert Store(tmp_path).get(ANSWER, fails) == store.path(ANSWER)


def test_two_artifacts_that_changed_places(tmp_path):
    store = Store(tmp_path)
    a, b = store.get(ANSWER, make), store.get(OTHER, make)
    a.rename(tmp_path / "between")
    b.rename(a)
    (tmp_path / "between").rename(b)
    for recipe in (ANSWER, OTHER):
        read_again(tmp_path, recipe, "another's")


def test_a_recipe_with_every_kind_of_value_is_known_again(tmp_path):
    recipe = {"kind": "demo", "ö": [1, 1.5, None, True, ("a", {"z": 1e-30, "a": []})]}
    assert Store(tmp_path).get(recipe, make) == Store(tmp_path).get(recipe, fails)


# Nothing besides


@pytest.mark.parametrize(
    "name", ["model.safetensors.index.json", "part/added_tokens.json", "part/deep/.hidden"]
)
def test_a_file_that_was_added(tmp_path, name):
    path = Store(tmp_path).get(ANSWER, make)
    (path / name).parent.mkdir(exist_ok=True)
    (path / name).write_text("{}")
    read_again(tmp_path, ANSWER, f"^{re.escape(name)} was added", f"take it out of {path}$")
    (path / name).unlink()
    assert Store(tmp_path).get(ANSWER, fails) == path


def test_a_link_to_a_folder_that_was_added(tmp_path):
    path = Store(tmp_path / "lab").get(ANSWER, make)
    (tmp_path / "elsewhere").mkdir()
    (path / "tokenizer").symlink_to(tmp_path / "elsewhere")
    read_again(tmp_path / "lab", ANSWER, "tokenizer was added")


# A manifest that says something

SHORT = {
    "nothing": lambda manifest: {},
    "no object": lambda manifest: [*manifest],
    "the recipe alone": lambda manifest: {"recipe.json": manifest["recipe.json"]},
    "no recipe": lambda manifest: {k: v for k, v in manifest.items() if k != "recipe.json"},
}


@pytest.mark.parametrize("short", SHORT)
def test_a_manifest_that_lists_too_little(tmp_path, short):
    path = Store(tmp_path).get(ANSWER, make)
    manifest = SHORT[short](json.loads((path / "manifest.json").read_text()))
    for p in path.rglob("*"):
        if p.is_file() and p.relative_to(path).as_posix() not in manifest:
            p.unlink()
    (path / "manifest.json").write_text(json.dumps(manifest))
    read_again(tmp_path, ANSWER, "manifest.json .* recipe.json and at least one", f"delete {path}")


def test_a_maker_that_writes_nothing(tmp_path):
    refused(lambda: Store(tmp_path).get(ANSWER, lambda *_: None), "'demo'", "wrote no file")
    assert not Store(tmp_path).has(ANSWER) and left_in(tmp_path) == []


# Where nothing can be written


@pytest.fixture
def nobody():
    "To be somebody who may not write what root wrote."
    was = os.geteuid()
    if was == 0:
        os.seteuid(65534)
    yield
    os.seteuid(was)


@pytest.fixture
def finished():
    "A lab with one artifact, where no folder can be written."
    root = Path(tempfile.mkdtemp())  # pytest's own folders are closed to others
    list(Lab(str(root)).build([PAIRS_RECIPE], progress=False))
    folders = [root, *(p for p in root.rglob("*") if p.is_dir())]
    for p in folders:
        p.chmod(0o555)
    yield root
    for p in folders:
        p.chmod(0o755)
    shutil.rmtree(root)


def test_a_finished_lab_is_read_where_nothing_can_be_written(finished, nobody):
    with pytest.raises(PermissionError):
        (finished / "file").touch()
    lab = Lab(str(finished))
    assert list(lab.build([PAIRS_RECIPE], progress=False)) == [PAIRS_RECIPE]
    assert len(lab.pairs(PAIRS_RECIPE)) == 1 and lab.pictures(PAIRS_RECIPE).shape == (1, 8, 8, 3)


def test_what_is_missing_there_is_not_begun(finished, nobody):
    says = f"cannot write to {re.escape(str(finished))} .Permission denied", "choose another folder"
    refused(lambda: Store(finished).get(ANSWER, fails), *says, error=OSError)


def test_an_empty_lab_that_cannot_be_written_is_refused_at_once(nobody):
    with tempfile.TemporaryDirectory() as root:
        Path(root).chmod(0o555)
        refused(lambda: Store(root), "cannot write to", "choose another folder", error=OSError)


# A full disk


def left_in(root):
    "Files and folders of a lab, locks left out."
    found = (p for p in root.rglob("*") if p.suffix != ".lock")
    return sorted(p.relative_to(root).as_posix() for p in found if p.parent.name == "scratch")


@pytest.mark.parametrize("checkpoint", [False, True])
def test_after_a_full_disk_only_checkpoints_are_left(tmp_path, checkpoint):
    store = Store(tmp_path)

    def fills(folder, scratch):
        make(folder, scratch)
        if checkpoint:
            (scratch / "run.pt").write_text("step 3")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        store.get(ANSWER, fills)
    name = store.path(ANSWER).name
    assert left_in(tmp_path) == ([f"scratch/{name}"] if checkpoint else [])
    assert [p.name for p in tmp_path.rglob("*.*") if p.suffix != ".lock"] == ["run.pt"] * checkpoint
    assert store.get(ANSWER, make) and left_in(tmp_path) == []


def test_a_disk_that_fills_while_the_artifact_is_sealed(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        Store(tmp_path).get(ANSWER, make)
    assert not Store(tmp_path).has(ANSWER) and left_in(tmp_path) == []


WORKER = """
import sys, time
from pathlib import Path
from trainprove_nb.lab.store import Store
root, first = Path(sys.argv[1]), sys.argv[2] == 'first'
def make(folder, scratch):
    (root/'begun').touch()
    (folder/'answer.txt').write_text('42')
    if first:
        while not (root/'waits').exists(): time.sleep(.01)
        time.sleep(.5)
        raise OSError(28, 'No space left on device')
while not first and not (root/'begun').exists(): time.sleep(.01)
if not first: (root/'waits').touch()
Store(root/'lab').get({'kind': 'demo', 'question': 'life'}, make)
"""


def test_who_waits_makes_it_when_the_first_one_fails(tmp_path):
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, tmp_path, name], stderr=subprocess.PIPE, text=True
        )
        for name in ("first", "second")
    ]
    errors = [w.communicate(timeout=60)[1] for w in workers]
    assert [w.returncode for w in workers] == [1, 0], errors
    path = Store(tmp_path / "lab").get(ANSWER, fails)
    assert (path / "answer.txt").read_text() == "42" and left_in(tmp_path / "lab") == []


# Models

NEEDED = sorted(
    p.relative_to(WEIGHTS / "mini-v1").as_posix()
    for p in (WEIGHTS / "mini-v1").rglob("*")
    if p.suffix in (".json", ".safetensors") and p.name != "losses.json"
)


@pytest.mark.parametrize("lost", NEEDED)
def test_a_model_without_one_of_its_files_is_refused(tmp_path, lost):
    mine = shutil.copytree(WEIGHTS / "mini-v1", tmp_path / "mine")
    (mine / lost).unlink()
    part = re.escape(lost.partition("/")[0])
    refused(lambda: load_model(str(mine)), re.escape(str(mine)), part, "give|copy it again")


@pytest.mark.parametrize("name", ["running_var", "running_mean", "bias"])
def test_what_a_network_counted_must_be_numbers_too(name):
    net = classifier("resnet", ["a", "b"])
    check_weights({"net": net})
    wrong = next(k for k in net.state_dict() if k.endswith(name))
    net.state_dict()[wrong][0] = torch.inf
    refused(lambda: check_weights({"net": net}), "1 of the .* of its net are not finite", wrong)


def test_every_damage_says_which_file_is_whole_again(tmp_path):
    "What is refused is made again after what the sentence says was done."
    path = Store(tmp_path).get(ANSWER, make)
    digest = file_digest(path / "part/answer.txt")
    (path / "part/answer.txt").write_text("41")
    read_again(tmp_path, ANSWER, f"delete {path}")
    shutil.rmtree(path)
    assert file_digest(Store(tmp_path).get(ANSWER, make) / "part/answer.txt") == digest
