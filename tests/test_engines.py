"Who makes what is missing: one process, several, dask or ray; and that it makes no difference to a byte."

import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch
from helpers import refused

from trainprove_nb.lab import engine
from trainprove_nb.lab.clusters import check_backend, in_a_row, workers
from trainprove_nb.lab.costs import ASSUMED, UNITS, Times, pictures_of, seconds_for, setting, work
from trainprove_nb.lab.engine import Lab
from trainprove_nb.lab.generator_recipes import GeneratorRecipes
from trainprove_nb.lab.generator_scales import generator_scale
from trainprove_nb.lab.generator_trials import generator_stages, generator_trials, needed
from trainprove_nb.lab.log_recipes import picture_losses, picture_restored
from trainprove_nb.lab.makers import KINDS

# Names and addresses


@pytest.mark.parametrize("name", ["dsk", "", "loky:tcp://host:1", "sequential:", "Dask", None, 3])
def test_an_unknown_backend_is_refused_by_name(name):
    refused(lambda: check_backend(name), f"unknown backend {name!r}", "dask:tcp://host:8786")


@pytest.mark.parametrize("name", ["dask", "ray"])
def test_a_library_that_is_not_installed(monkeypatch, name):
    monkeypatch.setattr("trainprove_nb.lab.clusters.find_spec", lambda library: None)
    refused(lambda: check_backend(name), "not installed", rf"pip install .trainprove_nb\[{name}\]")


def there(name):
    "Skip where a library is missing."
    return pytest.importorskip({"dask": "distributed"}.get(name, name))


@pytest.mark.parametrize(
    "backend",
    ["dask:", "dask:host:8786", "dask:tcp://host", "dask:http://host:1", "ray:", "ray:ray://h:1"],
)
def test_an_address_that_is_none(backend):
    there(backend.partition(":")[0])
    refused(lambda: check_backend(backend), "has no address", "as in dask:tcp://host:8786")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.mark.parametrize("form", ["dask:tcp://127.0.0.1:{}", "ray:127.0.0.1:{}"])
def test_nobody_answers(tmp_path, form):
    there(form.partition(":")[0])
    backend = form.format(free_port())
    refused(lambda: check_backend(backend), "nobody answers at", "start", error=ConnectionError)
    lab = Lab(str(tmp_path))
    wanted = [{"kind": "pairs", "corpus": "emoji", "split": "source", "n": 1, "size": 8}]
    refused(lambda: list(lab.build(wanted, 2, backend)), "nobody answers", error=ConnectionError)
    assert not lab.store.has(wanted[0])


def test_a_port_where_somebody_listens_is_one():
    there("dask")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        address = f"tcp://127.0.0.1:{s.getsockname()[1]}"
        assert check_backend(f"dask:{address}") == ("dask", address)


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    "Let ray take its time to start, on a machine that is busy."
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "60")


# Tasks, with work that needs nothing to be loaded

LIGHT = """
import errno, hashlib, os, time
from pathlib import Path
from trainprove_nb.lab.store import Store

def work(root, k):
    if k == 3:
        raise ValueError("three cannot be made")
    here = Path(root, "begun")
    here.mkdir(exist_ok=True)
    (here / f"{k}-{os.getpid()}").touch()
    while k == 1 and not Path(root, "go").exists():
        time.sleep(0.05)
    full = Path(root, "full")  # where it is there, the worker that comes first has a full disk
    if full.exists() and not full.read_text():
        full.write_text(str(os.getpid()))

    def make(folder, scratch):
        (folder / "half.txt").write_text("what was written before")
        if full.exists() and full.read_text() == str(os.getpid()):
            raise OSError(errno.ENOSPC, "No space left on device")
        (folder / "half.txt").unlink()
        (folder / "numbers.txt").write_text(hashlib.sha256(str(k).encode()).hexdigest() * 1000)

    return Store(Path(root, "lab")).get({"kind": "light", "k": k}, make).name
"""


@pytest.fixture
def light(tmp_path, monkeypatch):
    "Work that workers can import; task 1 waits for `go`, task 3 fails."
    (tmp_path / "lightwork.py").write_text(LIGHT)
    monkeypatch.syspath_prepend(str(tmp_path))
    # what new processes can import, too
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    sys.modules.pop("lightwork", None)
    import lightwork

    return lightwork.work


def digests(root):
    "Files of a lab, without its scratch and its log."
    files = [p for p in Path(root).rglob("*") if p.is_file() and "scratch" not in p.parts]
    return {
        str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in files
        if p.name != "times.jsonl"
    }


def done_by(backend, work, root, jobs=2):
    "What came of five tasks, in the order of the tasks."
    root.mkdir()
    (root / "go").touch()
    with workers(jobs, backend) as run:
        return sorted(run(partial(work, str(root)), list(range(5))), key=lambda done: done[0])


@pytest.mark.parametrize("backend", ["loky", "dask", "ray"])
def test_workers_give_what_one_process_gives(tmp_path, light, backend):
    if backend != "loky":
        there(backend)
    expected = done_by("sequential", light, tmp_path / "alone")
    assert done_by(backend, light, tmp_path / "together") == expected
    assert digests(tmp_path / "together/lab") == digests(tmp_path / "alone/lab") != {}
    assert [problem for *_, problem in expected] == [None] * 3 + [
        "ValueError: three cannot be made",
        None,
    ]
    pids = {p.name.partition("-")[2] for p in (tmp_path / "together/begun").iterdir()}
    assert str(os.getpid()) not in pids and len(pids) <= 2


def test_one_worker_of_this_machine_is_this_process():
    for backend in ("sequential", "loky"):
        with workers(1, backend) as run:
            assert run is in_a_row


@pytest.mark.parametrize("backend", ["loky", "dask", "ray"])
def test_a_full_disk_on_one_node_spoils_nothing(tmp_path, light, backend):
    if backend != "loky":
        there(backend)
    expected = done_by("sequential", light, tmp_path / "alone")
    root = tmp_path / "together"
    root.mkdir()
    (root / "full").touch()
    (root / "go").touch()
    with workers(2, backend) as run:
        problems = [problem for *_, problem in run(partial(light, str(root)), list(range(5)))]
    assert any("No space left on device" in str(problem) for problem in problems)
    kept, alone = digests(root / "lab"), digests(tmp_path / "alone/lab")
    assert kept.items() <= alone.items()
    (root / "full").unlink()
    with workers(2, backend) as run:  # the same command, once there is space
        again = sorted(run(partial(light, str(root)), list(range(5))), key=lambda done: done[0])
    assert again == expected and digests(root / "lab") == alone


def kill_who_does(root, then=None):
    "In a thread: kill the worker that has begun task 1, and let the task end the next time; or `then`."

    def wait():
        while not (begun := list((root / "begun").glob("1-*"))):
            time.sleep(0.02)
        pid = int(begun[0].name.partition("-")[2])
        assert pid != os.getpid()
        if then:
            return then()  # and the task goes on without end
        os.kill(pid, signal.SIGKILL)
        (root / "go").touch()

    threading.Thread(target=wait, daemon=True).start()


@pytest.mark.parametrize("backend", ["dask", "ray"])
def test_the_task_of_a_killed_worker_is_done_again(tmp_path, light, backend):
    there(backend)
    expected = done_by("sequential", light, tmp_path / "alone")
    root = tmp_path / "killed"
    root.mkdir()
    kill_who_does(root)
    with workers(2, backend) as run:
        found = sorted(run(partial(light, str(root)), list(range(5))), key=lambda done: done[0])
    assert found == expected
    assert digests(root / "lab") == digests(tmp_path / "alone/lab")
    assert len(list((root / "begun").glob("1-*"))) == 2  # by one that was killed, and another


def test_a_killed_process_of_this_machine_is_one_sentence(tmp_path, light):
    root = tmp_path / "killed"
    root.mkdir()
    kill_who_does(root)

    def lost():
        with workers(2, "loky") as run:
            list(run(partial(light, str(root)), list(range(5))))

    refused(lost, "a worker was killed", "fewer jobs", "is kept", error=RuntimeError)


# A cluster that runs already


@pytest.fixture
def scheduler(light, tmp_path):
    "A dask scheduler with two workers, processes of their own: (backend, how to kill the scheduler)."
    there("dask")
    port, started = free_port(), []
    base = dict(start_new_session=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def start(*args):
        command = [sys.executable, "-m", "distributed.cli." + args[0], *args[1:], "--no-dashboard"]
        started.append(subprocess.Popen(command, cwd=tmp_path, **base))
        return started[-1]

    head = start("dask_scheduler", "--host", "127.0.0.1", "--port", str(port))
    address = f"tcp://127.0.0.1:{port}"
    wait_for(lambda: answers(f"dask:{address}"))
    yield f"dask:{address}", start, partial(os.killpg, head.pid, signal.SIGKILL)
    for process in started:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()


def answers(backend):
    try:
        return check_backend(backend)
    except ConnectionError:
        return None


def wait_for(condition, seconds=120):
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds
        time.sleep(0.1)


def test_a_scheduler_elsewhere_and_its_end(tmp_path, light, scheduler):
    backend, start, kill = scheduler
    address = backend.partition(":")[2]
    start("dask_worker", address, "--nworkers", "2", "--nthreads", "1")
    root = tmp_path / "lost"
    root.mkdir()
    kill_who_does(root, then=kill)

    def lost():
        with workers(1, backend) as run:
            list(run(partial(light, str(root)), [0, 1]))

    refused(lost, "the dask scheduler is gone", "is kept", "same command", error=ConnectionError)
    finished = digests(root / "lab")
    assert done_by("sequential", light, tmp_path / "alone") and finished.items() <= (
        digests(tmp_path / "alone/lab").items()
    )


def test_the_end_of_a_ray_cluster(tmp_path, light):
    there("ray")
    root = tmp_path / "lost"
    root.mkdir()

    def kill():
        for process in psutil.Process().children(recursive=True):
            if process.name() in ("gcs_server", "raylet"):
                process.kill()

    kill_who_does(root, then=kill)

    def lost():
        with workers(2, "ray") as run:
            list(run(partial(light, str(root)), [1]))

    refused(lost, "the ray cluster is gone", "same command", error=ConnectionError)


def test_workers_of_several_threads_are_refused(light, scheduler):
    backend, start, _ = scheduler
    start("dask_worker", backend.partition(":")[2], "--nworkers", "1", "--nthreads", "2")

    def use():
        with workers(1, backend):
            pass

    refused(use, "several tasks into one process", "--nthreads 1")


# The engine

SMOKE = GeneratorRecipes(generator_scale("smoke"))
SOURCE = SMOKE.sources(["mini-v1-avatars"])[0]
INNOCENT = SMOKE.innocent(SOURCE, "disjoint data", 0)


def stages():
    "Everything for one innocent's answers, and the source's own."
    trials = [t for t in generator_trials(SMOKE, SOURCE, ["detection"]) if t.model == INNOCENT]
    return {
        "data": [SMOKE.train(SOURCE)],
        "models": [SMOKE.source(SOURCE), INNOCENT],
        "keys": [SMOKE.keys(SOURCE, "detection")],
        "answers": needed(trials) + [SMOKE.source_answers(SOURCE, "detection", 0)],
    }


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    "A lab in which one process made everything."
    lab = Lab(str(tmp_path_factory.mktemp("alone")))
    made = list(lab.build_stages(stages(), progress=False))
    assert len(made) == 7
    return lab


@pytest.mark.parametrize("backend", ["dask", "ray"])
def test_a_lab_made_elsewhere_is_the_same_to_the_byte(tmp_path, alone, backend):
    there(backend)
    lab = Lab(str(tmp_path))
    made = list(lab.build_stages(stages(), 2, backend, progress=False))
    assert len(made) == 7 and digests(tmp_path) == digests(alone.store.root)


def test_every_artifact_has_a_line_in_the_log_and_none_in_itself(alone):
    lines = alone.times._lines()
    folders = [p for p in alone.store.root.glob("*/*/recipe.json")]
    assert len(lines) == len(folders) == alone.times.file.read_text().count("\n")
    assert not any("seconds" in p.read_text() for p in folders)
    assert all(seconds > 0 for _, seconds in lines)


def test_what_is_not_to_be_seen_is_not_there(tmp_path, monkeypatch):
    "A worker that writes into another folder, as on a machine that does not share the lab's."
    monkeypatch.setattr(engine, "_attempt", lambda root, recipe: None)
    lab = Lab(str(tmp_path))
    says = "1 of 1", "not to be seen here", "one folder", "lookupcache=positive"
    refused(lambda: list(lab.build([SMOKE.train(SOURCE)])), *says, error=RuntimeError)


def test_artifacts_of_one_model_follow_each_other():
    models = [SMOKE.innocent(SOURCE, "same data", k) for k in range(3)]
    asked = [SMOKE.answers(m, SOURCE, s) for s in ("detection", "random") for m in models]
    ordered = engine._by_model([*models, *asked])
    assert ordered[:3] == models
    assert [models.index(r["model"]) for r in ordered[3:]] == [0, 0, 1, 1, 2, 2]
    assert sorted(map(str, ordered)) == sorted(map(str, [*models, *asked]))


# One model in memory


def state(pipe):
    "All weights of a pipeline, and which of them learn."
    parts = [p for p in pipe.components.values() if isinstance(p, torch.nn.Module)]
    found = hashlib.sha256()
    for part in parts:
        for name, x in part.state_dict().items():
            found.update(name.encode() + x.cpu().numpy().tobytes())
    trains = [(p.training, [w.requires_grad for w in p.parameters()]) for p in parts]
    return found.hexdigest(), trains, str(pipe.scheduler.config)


ASKED = {
    "answers": lambda m: SMOKE.answers(m, SOURCE, "random"),
    "prompts": lambda m: {**SMOKE.prompts(SOURCE), "model": m},
    "reproduction": lambda m: {**SMOKE.reproduction(SOURCE), "model": m},
    "generated": lambda m: {**SMOKE.generated(SOURCE, 0), "model": m},
    "losses": lambda m: picture_losses(SMOKE, m, SMOKE.train(SOURCE)),
    "restored": lambda m: picture_restored(SMOKE, m, SMOKE.train(SOURCE)),
}


@pytest.fixture(scope="module")
def asked_of_fresh_models(tmp_path_factory):
    "What is asked of the innocent, each time of a model that was just loaded."
    lab = Lab(str(tmp_path_factory.mktemp("fresh")))
    for recipe in ASKED.values():
        engine._LAST.clear()
        lab.path(recipe(INNOCENT))
    return lab


def test_no_maker_but_fine_tuning_changes_the_model_that_it_asks(tmp_path, asked_of_fresh_models):
    lab = Lab(str(tmp_path))
    kept = lab.model(INNOCENT)
    lab.path(SMOKE.keys(SOURCE, "random"))
    kept, before = lab.model(INNOCENT), state(lab.model(INNOCENT))
    for kind, recipe in ASKED.items():
        lab.path(recipe(INNOCENT))
        assert lab.model(INNOCENT) is kept, kind
        assert state(kept) == before, kind
    assert digests(tmp_path) == digests(asked_of_fresh_models.store.root)


def test_fine_tuning_gets_a_model_of_its_own(alone):
    base = SMOKE.base("mini-v1")
    kept = alone.model(base)
    before = state(kept)
    assert alone.model(base) is kept
    alone.path(SMOKE.innocent(SOURCE, "same data", 0))
    assert state(kept) == before and alone.model(base) is not kept
    assert state(alone.model(base)) == before


def test_a_fine_tuning_that_fails_leaves_no_changed_model(alone, monkeypatch):
    def breaks(pipe, *_, **__):
        with torch.no_grad():
            next(pipe.unet.parameters()).zero_()
        raise MemoryError("no room")

    base = SMOKE.base("mini-v1")
    before = state(alone.model(base))
    monkeypatch.setattr("trainprove_nb.lab.makers.finetune", breaks)
    with pytest.raises(MemoryError):
        alone.path(SMOKE.innocent(SOURCE, "same data", 1))
    assert state(alone.model(base)) == before


# Work and time


def test_every_kind_that_is_made_has_a_unit():
    recipes = [
        r for part in generator_stages(SMOKE, [SOURCE], ["detection"]).values() for r in part
    ]
    recipes += [recipe(INNOCENT) for recipe in ASKED.values()]
    assert {work(r)[0] for r in recipes} <= set(UNITS)
    assert all(set(UNITS) == set(a.seconds) for a in ASSUMED.values())
    assert {"model", "answers", "prompts", "reproduction", "losses"} <= set(KINDS)


def test_work_is_counted_by_hand():
    scale = SMOKE.scale
    counted = {kind: work(recipe(INNOCENT)) for kind, recipe in ASKED.items()}
    assert counted == {
        "answers": ("picture", scale.mined),
        "prompts": ("search", 2),  # two steps of one batch
        "reproduction": ("picture", scale.train * scale.repeats),
        "generated": ("picture", scale.pairs),
        "losses": ("denoised", 4 * scale.train),
        "restored": ("restored", scale.train),
    }
    assert work(INNOCENT) == ("step", 2) and work(SMOKE.train(SOURCE)) == ("file", 1)
    assert pictures_of(INNOCENT) == 0 and pictures_of(SMOKE.train(SOURCE)) == scale.train


def test_what_decides_the_time_of_a_unit_is_told_apart():
    mini = GeneratorRecipes(generator_scale("mini"))
    of_mini, longer = mini.innocent(SOURCE, "same data", 0), mini.source(SOURCE)
    assert setting(of_mini) == setting(longer) != setting(INNOCENT)
    other = mini.innocent(mini.sources(["mini-v2-emoji"])[0], "same data", 0)
    assert setting(other) != setting(of_mini)
    quick, slow = (
        SMOKE.answers(INNOCENT, SOURCE, "random"),
        mini.answers(of_mini, SOURCE, "random"),
    )
    assert setting(quick) != setting(slow)


def test_a_log_that_was_cut_off_is_read_as_far_as_it_goes(tmp_path):
    times = Times(str(tmp_path))
    assert times.rates() == {}
    for seconds in (2.0, 4.0, 40.0):
        times.note(INNOCENT, seconds)
    with times.file.open("a") as f:
        f.write('{"setting": "model", "seco\n[1]\n{"n": 1}\n')
    assert times.rates() == {setting(INNOCENT): 2.0}  # four seconds, two steps
    twice = {**INNOCENT, "training": {**INNOCENT["training"], "steps": 4}}
    assert seconds_for(twice, times.rates(), {"step": 99.0}) == 8.0
    assert seconds_for(twice, {}, {"step": 99.0}) == 396.0


def test_a_log_that_cannot_be_written_stops_nobody(blocked):
    Times(str(blocked)).note(INNOCENT, 1.0)


def test_inputs_that_are_made_within_are_not_counted_twice(tmp_path, monkeypatch):
    "The times of an artifact and of what it is made from add up to the whole."
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(engine.time, "monotonic", lambda: next(clock))
    lab = Lab(str(tmp_path))
    with lab._timed(INNOCENT):
        with lab._timed(SMOKE.train(SOURCE)):
            pass
        with lab._timed(SMOKE.train(SOURCE)):
            pass
    inner, _, outer = (seconds for _, seconds in lab.times._lines())
    assert inner == 10 and outer * 2 < 40


def test_the_bar_is_filled_by_expected_time_over_all_stages(tmp_path, capsys):
    lab = Lab(str(tmp_path))
    two = {"first": [SMOKE.train(SOURCE)], "second": [SMOKE.real("emoji", "evaluation", 3)]}
    list(lab.build_stages(two))
    told = capsys.readouterr().err
    assert "first, 0 of 2" in told and "second, 1 of 2" in told and "100%" in told
    list(lab.build_stages(two))
    assert "%" not in capsys.readouterr().err
