"Ready: a hub that answers as the real one does, data sets that are too small, a disk that is full."

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from huggingface_hub import HfApi

from trainprove_nb import cli
from trainprove_nb.data.folders import read_metadata
from trainprove_nb.lab.makers import SHARES
from trainprove_nb.report import ready
from trainprove_nb.report.estimates import ASSUMED, estimate, needed_recipes
from trainprove_nb.report.plan import usual_parameters

FILES = {
    "model_index.json": 500,
    "unet/diffusion_pytorch_model.safetensors": 3_438_167_534,
    "unet/diffusion_pytorch_model.fp16.safetensors": 1_719_125_304,
    "unet/diffusion_pytorch_model.non_ema.safetensors": 3_438_167_534,
    "vae/diffusion_pytorch_model.safetensors": 334_643_276,
    "unet/diffusion_pytorch_model.bin": 3_438_354_725,
    "v1-5-pruned.safetensors": 7_703_324_286,
}


class Hub(BaseHTTPRequestHandler):
    "What the hub says of a model: https://huggingface.co/docs/hub/api, GET /api/models/{repo_id}."

    def do_GET(self):
        name = self.path.partition("?")[0].removeprefix("/api/models/")
        assert "blobs=true" in self.path.lower()
        if name == "nobody/nothing":
            return self._answer(404, {"error": "Repository not found"}, "RepoNotFound")
        if name == "shut/away":
            return self._answer(403, {"error": "Access restricted"}, "GatedRepo")
        card = {} if name == "open/bare" else {"license": "creativeml-openrail-m"}
        found = {
            "_id": "1",
            "id": name,
            "sha": "a" * 40,
            "gated": "manual" if name == "asks/first" else False,
            "cardData": card,
            "siblings": [{"rfilename": n, "size": s} for n, s in FILES.items()],
        }
        self._answer(200, found)

    def _answer(self, status, body, error=None):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Type", "application/json")
        if error:
            self.send_header("X-Error-Code", error)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def hub():
    server = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield HfApi(endpoint=f"http://127.0.0.1:{server.server_port}")
    server.shutdown()


@pytest.mark.parametrize(
    "name, ok, says",
    [
        ("open/model", True, "licence creativeml-openrail-m; 3.8 GB of weights"),
        ("open/bare", True, "no licence stated"),
        ("asks/first", True, "to those who agree"),
        ("shut/away", False, "to those who agree"),
        ("nobody/nothing", False, "no such model"),
    ],
)
def test_a_name_on_the_hub(hub, name, ok, says):
    found = ready.check_base(name, hub)
    assert found.ok is ok and says in found.told


def test_without_a_network_a_model_is_unknown_unless_a_copy_is_here(monkeypatch):
    nowhere = HfApi(endpoint="http://127.0.0.1:9")
    found = ready.check_base("owner/model", nowhere)
    assert found.ok is None and "could not be asked" in found.told
    monkeypatch.setattr(ready, "try_to_load_from_cache", lambda *a: "/somewhere/model_index.json")
    assert ready.check_base("owner/model", nowhere).ok is True


def folder_of(path, n):
    path.mkdir()
    for k in range(n):
        (path / f"{k}.png").write_bytes(b"not opened")
    lines = [json.dumps({"file_name": f"{k}.png", "text": f"caption {k}"}) for k in range(n)]
    (path / "metadata.jsonl").write_text("\n".join(lines))
    assert len(read_metadata(path)) == n
    return str(path)


def test_each_split_is_a_share_of_a_folder(tmp_path):
    recipes = [
        {"kind": "pairs", "corpus": "mine", "split": "source", "n": 40},
        {"kind": "pairs", "corpus": "mine", "split": "calibration", "n": 30},
        {"kind": "pairs", "corpus": "theirs", "split": "all", "n": 7},
    ]
    low, high = SHARES["calibration"]
    assert (low, high) == (0.7, 0.95)
    assert ready.pictures_needed(recipes) == {"mine": 120, "theirs": 7}
    small = folder_of(tmp_path / "small", 5)
    assert ready.check_data(small, 5).ok and not ready.check_data(small, 6).ok
    assert "5 pictures of 6 needed" in ready.check_data(small, 6).told
    (tmp_path / "small" / "4.png").unlink()
    assert ready.check_data(small, 4).ok is None
    assert "no such folder" in ready.check_data(str(tmp_path / "none"), 6).told


def test_a_full_disk_and_a_small_machine_are_told(tmp_path, monkeypatch):
    recipes = needed_recipes("fig6", usual_parameters("fig6") | dict(scale="smoke"))
    found = estimate(recipes, "smoke")
    lab = str(tmp_path / "not" / "yet")
    assert [x.ok for x in ready.check_machine(found, lab)] == [True] * 3
    free = SimpleNamespace(free=found.gigabytes * 0.9 * 1e9)
    monkeypatch.setattr(ready.shutil, "disk_usage", lambda path: free)
    monkeypatch.setattr(ready, "_memory", lambda: ASSUMED["smoke"].memory * 0.9)
    assert [x.ok for x in ready.check_machine(found, lab)] == [False, False, True]


def test_the_command_says_what_is_missing_and_starts_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    told = CliRunner().invoke(cli.main, ["check", "fig6", "trainprove", "--scale", "paper"])
    assert told.exit_code == 2
    lines = told.stdout.splitlines()
    assert len({line for line in lines if " model stable-diffusion-v1-5/" in line}) == 1
    assert "missing  data data/cc3m: no such folder; 7,500 pictures are needed" in lines
    assert any(line.startswith("missing  data data/cifar10") for line in lines)
    assert list(tmp_path.iterdir()) == []
    here = CliRunner().invoke(cli.main, ["check", "fig6", "--scale", "smoke"])
    assert here.exit_code == 0 and "unknown" not in here.stdout


def test_a_wrong_setting_is_one_sentence():
    told = CliRunner().invoke(cli.main, ["check", "fig6", "-s", "N=0"])
    assert told.exit_code == 2 and told.output.count("\n") == 1 and "N = 0" in told.output
