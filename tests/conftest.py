"What several of the test files share: threads, folders, copies of the repository, the package as installed."

import os
import shutil

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores; set before torch is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from helpers import ANIMALS, ROOT, Installed
from xdist.scheduler import LoadScopeScheduling

from trainprove_nb.data.corpora import corpus
from trainprove_nb.data.pairs import pixels

# Files that share a fixture which takes long to make, and so a worker
GROUPS = {"test_house.py": "installed", "test_audit.py": "installed"}
# What comes and goes while other tests run
PASSING = ("__pycache__", ".ipynb_checkpoints", "*.drawn.ipynb")


class ByFile(LoadScopeScheduling):
    "Tests of one file share a worker, and so its fixtures; notebooks go wherever one is free."

    def _split_scope(self, nodeid):
        name = nodeid.partition("::")[0].rpartition("/")[2]
        return nodeid if name == "test_notebooks.py" else GROUPS.get(name, name)


def pytest_xdist_make_scheduler(config, log):
    "By a scheduler of our own: pytest 9.2 does not let xdist's groups be seen."
    return ByFile(config, log)


@pytest.fixture(scope="module")
def one_thread():
    "Let torch use one thread in this file: numbers repeat to the bit."
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def blocked(tmp_path):
    "A folder that nobody can make, not even root: it would lie below a file."
    (tmp_path / "file").write_text("in the way")
    return tmp_path / "file" / "sub"


@pytest.fixture(scope="module")
def labelled():
    "Eight pictures of each animal, and their labels."
    ds = corpus("emoji", "labelled", 8, classes=ANIMALS)
    return pixels(ds), np.repeat(np.arange(3), 8)


@pytest.fixture(scope="session")
def made_before(tmp_path_factory):
    "A folder where labs of all workers find what others have made."
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "made"


def copy_of(root, *names, skip=()):
    "Copy folders and files of the repository to `root`."
    for name in names:
        if (ROOT / name).is_dir():
            ignore = shutil.ignore_patterns(*PASSING, *skip)
            shutil.copytree(ROOT / name, root / name, symlinks=True, ignore=ignore)
        else:
            shutil.copy2(ROOT / name, root)
    return root


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    "A copy of what the notebooks need, to run them in."
    root = tmp_path_factory.mktemp("checkout")
    return copy_of(root, "nbs", "trainprove_nb", "settings.ini", "_quarto.yml")


@pytest.fixture
def copy(tmp_path):
    "A copy of what nbdev and the tools work on, free to be changed."
    root = tmp_path / "copy"
    root.mkdir()
    names = ("nbs", "trainprove_nb", "tools", "settings.ini", "_quarto.yml", "README.md")
    copy_of(root, *names, skip=("weights", "nbdev.yml"))
    (root / "trainprove_nb/weights").symlink_to(ROOT / "trainprove_nb/weights")
    return root


@pytest.fixture(scope="session")
def installed(tmp_path_factory):
    "The package as a wheel installs it, where nothing of this checkout can be imported."
    source = tmp_path_factory.mktemp("source")
    names = ("nbs", "trainprove_nb", "setup.py", "settings.ini", "README.md", "MANIFEST.in")
    copy_of(source, *names, "constraints.txt", "LICENSE")
    return Installed(source, tmp_path_factory.mktemp("installed"))


@pytest.fixture(scope="session")
def elsewhere(installed, tmp_path_factory):
    "A folder where the installed package, at smoke and in one lab, drew Figure 6 and made both audits."
    folder = tmp_path_factory.mktemp("elsewhere")
    smoke = ["--scale", "smoke", "--jobs", "1"]
    for name, *settings in (
        ("fig6", "-s", "sources=[mini-v1-avatars]"),
        ("audit_generator", "-s", "shadows=3"),
        ("audit_classifier",),
    ):
        installed.trainprove("figures", name, *smoke, *settings, cwd=folder)
    return folder
