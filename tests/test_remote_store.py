"A lab and a bucket: an address is refused where a folder is needed, and a copy of a lab is a lab."

import random
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from helpers import refused
from test_lab import ANSWER, fails, make

from trainprove_nb.audit.command import audit
from trainprove_nb.cli import main
from trainprove_nb.lab.engine import Lab
from trainprove_nb.lab.store import DamagedArtifact, Store, check_local
from trainprove_nb.report.figures import check_folder

ADDRESSES = ("s3://bucket/lab", "gs://bucket/lab", "az://a/b", "file:///data/lab", "s3:/bucket/lab")


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("kind", [Store, Lab, check_local, check_folder])
def test_an_address_is_refused_and_makes_no_folder(tmp_path, monkeypatch, kind, address):
    monkeypatch.chdir(tmp_path)
    refused(lambda: kind(address), "is an address, not a folder", "aws s3 sync")
    refused(lambda: kind(Path(address)), "is an address, not a folder")  # which has one slash less
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["lab", "./a:b/lab", "C:/lab", "10:30/lab", "~/lab", "/a/s3:/lab"])
def test_a_folder_is_no_address(name):
    assert check_local(name) is None


COMMANDS = {
    "figures": ["figures", "table2", "--scale", "smoke"],
    "plan": ["figures", "table2", "--plan"],
    "status": ["status"],
    "check": ["check", "table2"],
}


@pytest.mark.parametrize("what", COMMANDS)
def test_commands_refuse_an_address_in_one_sentence(tmp_path, monkeypatch, what):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, [*COMMANDS[what], "--lab", "s3://bucket/lab"])
    assert done.exit_code == 2 and list(tmp_path.iterdir()) == []
    last = done.output.strip().splitlines()[-1]
    assert last.startswith("Error: ") and "--lab" in last and "is an address" in last


def test_a_folder_of_results_is_none_either(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["figures", "table2", "--redraw", "--out", "gs://bucket/out"])
    assert done.exit_code == 2 and "is an address" in done.output and not list(tmp_path.iterdir())


@pytest.mark.parametrize("key", ["released.log", "lab.folder", "out"])
def test_a_file_of_an_audit_names_the_key(tmp_path, key):
    (tmp_path / "audit.yaml").write_text("released: {log: log}\nsuspect: {model: mini-v1}\n")
    file = str(tmp_path / "audit.yaml")
    done = CliRunner().invoke(audit, ["check", file, "-s", f"{key}=s3://bucket/x"])
    assert done.exit_code == 2 and f"{key} = 's3://bucket/x'" in done.output
    assert "is an address" in done.output


# A copy, as a bucket holds it: files alone, in any order, without scratch


def files_of(lab):
    "The files that are copied, in an order that nobody chose."
    found = [p for p in sorted(lab.rglob("*")) if p.is_file() and "scratch" not in p.parts]
    random.Random(0).shuffle(found)
    return found


def copied(files, lab, to):
    "Copy files one by one."
    for file in files:
        place = to / file.relative_to(lab)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place)


def test_a_copied_lab_is_read_and_goes_on(tmp_path):
    lab, back = tmp_path / "lab", tmp_path / "back"
    Store(lab).get(ANSWER, make)
    copied(files_of(lab), lab, back)
    again = Store(back)
    assert again.get(ANSWER, fails) == again.path(ANSWER)
    again.get({**ANSWER, "question": "more"}, make)


def test_a_copy_that_is_not_complete_is_refused(tmp_path):
    lab = tmp_path / "lab"
    Store(lab).get(ANSWER, make)
    files = files_of(lab)
    assert len(files) >= 3
    for n in range(1, len(files)):
        copied(files[:n], lab, tmp_path / str(n))
        other = Store(tmp_path / str(n))
        refused(lambda other=other: other.get(ANSWER, fails), "delete", error=DamagedArtifact)
