"The command line: what it checks before work begins, and how it tells what went wrong."

import re
import shutil
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE, STDOUT

import click
import nbformat
import papermill
import pytest
from click.testing import CliRunner
from helpers import full, refused, run, sentence
from papermill.exceptions import PapermillExecutionError

from trainprove_nb import cli
from trainprove_nb.report.results import notebooks_folder, shipped_results


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
    "jobs": (["fig6", "--jobs", "0"], "0 is not in the range 1<=x<=100000"),
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
    monkeypatch.setattr("trainprove_nb.report.results.files", lambda _: tmp_path / "package")
    sentence(
        trainprove("fig6")[-1],
        "^Error: the notebooks of experiments are not here",
        "install .* from a checkout or a wheel",
    )
    refused(lambda: notebooks_folder("audit"), "^the notebooks of audit", error=FileNotFoundError)


@pytest.mark.parametrize("option", ["scale", "jobs", "lab", "out"])
def test_what_has_an_option_is_no_setting(trainprove, option):
    line = trainprove("fig6", "-s", f"{option}=1")[-1]
    assert line == f"Error: {option} has an option of its own: use --{option}"


# Commands that are imported when they are called

LATER = """
import click

@click.group()
def extra():
    "Something else."

@extra.command()
@click.option("--times", default=1)
def hello(times):
    click.echo("hello " * times)
"""


def test_a_command_is_imported_when_it_is_called(tmp_path, monkeypatch):
    (tmp_path / "later.py").write_text(LATER)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(cli, "LATER", {"extra": ("later", "Something else.")})
    told = CliRunner().invoke(cli.main, ["--help"]).output
    assert re.search(r"^  extra +Something else\.$", told, re.M) and "later" not in sys.modules
    assert CliRunner().invoke(cli.main, ["list"]).exit_code == 0 and "later" not in sys.modules
    done = CliRunner().invoke(cli.main, ["extra", "hello", "--times", "2"])
    assert (done.exit_code, done.output) == (0, "hello hello \n")
    sys.modules.pop("later")


@pytest.mark.parametrize("module", ["trainprove_nb.nowhere.command", "trainprove_nb.nowhere"])
def test_a_command_that_is_not_there_is_absent(monkeypatch, module):
    monkeypatch.setattr(cli, "LATER", {"extra": (module, "Something else.")})
    assert "extra" not in CliRunner().invoke(cli.main, ["--help"]).output
    done = CliRunner().invoke(cli.main, ["extra"])
    assert done.exit_code == 2 and "No such command 'extra'" in done.output


def test_what_is_quick_loads_no_models():
    code = "import sys; from trainprove_nb.cli import main; main(['list'], standalone_mode=False); "
    done = run("-c", code + "print([m for m in ('torch', 'diffusers') if m in sys.modules])")
    assert done.stdout.splitlines()[-1] == "[]", done.stdout[-500:] + done.stderr[-500:]


@pytest.mark.parametrize("backend", ["dsk", "loky:host", "ray:nowhere"])
def test_workers_that_cannot_be_had_are_told_before_work(trainprove, tmp_path, backend):
    line = trainprove("fig6", "-s", f"backend={backend}", "--out", str(tmp_path / "out"))[-1]
    sentence(line, "^Error: ", f"'{backend}'", "choose from|needs the library|has no address")
    assert list(tmp_path.iterdir()) == []


# Where the results go


@pytest.mark.parametrize(
    "scale, settings, folder",
    [
        ("mini", {}, "mini"),
        ("redrawn", {}, "redrawn"),
        ("mini", {"delta0": 0.2, "N": 20}, "mini-delta0=0.2-N=20"),
        ("redrawn", {"N": 20, "redraw": "/numbers", "results": "/all"}, "redrawn-N=20"),
        ("mini", {"backend": "sequential"}, "mini"),
    ],
)
def test_results_of_usual_settings_have_a_plain_folder(scale, settings, folder):
    assert cli.results_folder(scale, settings) == folder


UNUSUAL = [
    {"sources": ["mini-v1-avatars"]},
    {"sources": "mini-v1-avatars"},
    {"suspect": "models/mine"},
    {"suspect": "modelsmine"},
    {"suspect": "../../mine"},
    {"suspect": "C:\\mine"},
    {"knobs": {"suspects": 3}},
    {"knobs": {"suspects": [3]}},
    {"rhos": [k / 100 for k in range(50)]},
    {"rhos": [k / 100 for k in range(51)]},
    {"N": "a b"},
    {"N": "ab"},
]


def test_other_settings_have_other_folders():
    names = [cli.results_folder("mini", settings) for settings in UNUSUAL]
    assert len(set(names)) == len(names) == len(set(map(str.lower, names)))
    assert names == [cli.results_folder("mini", settings) for settings in UNUSUAL]
    assert [n for n in names if not re.fullmatch(r"mini-[\w=.,+-]{1,84}", n)] == []


@pytest.fixture
def executed(monkeypatch):
    "Notebooks that would be executed: (file, parameters)."
    calls = []

    def note(notebook, executed, parameters, **_):
        calls.append((Path(notebook).name, parameters))
        shutil.copy(notebook, executed)

    monkeypatch.setattr(papermill, "execute_notebook", note)
    return calls


def test_redraw_gives_each_figure_its_shipped_numbers(executed, tmp_path):
    out = ["--out", str(tmp_path / "out"), "--lab", str(tmp_path / "lab")]
    settings = ["fig6", "claims", "--redraw", "-s", "out.of.nothing=1"]
    done = CliRunner().invoke(cli.main, ["figures", *settings, *out])
    assert done.exit_code == 2 and executed == []
    done = CliRunner().invoke(cli.main, ["figures", "fig6", "claims", "--redraw", *out])
    assert done.exit_code == 0, done.output
    (fig6, first), (claims, second) = executed
    assert (fig6, claims) == ("fig6.ipynb", "claims.ipynb")
    assert first["redraw"] == str(shipped_results("fig6")) and "results" not in first
    assert second["results"] == str(shipped_results("fig6").parent) and "redraw" not in second
    assert "fig6 from its shipped results" in done.output and "at scale" not in done.output
    assert {p.name for p in (tmp_path / "out/redrawn").iterdir()} == {"fig6", "claims"}
    assert not (tmp_path / "lab").exists()


def test_a_redraw_may_have_settings_of_its_own(executed, tmp_path):
    out = ["--out", str(tmp_path / "out")]
    mine = ["-s", f"redraw={tmp_path}", "-s", "N=20"]
    done = CliRunner().invoke(cli.main, ["figures", "fig6", "--redraw", *mine, *out])
    assert done.exit_code == 0, done.output
    ((_, parameters),) = executed
    assert (parameters["redraw"], parameters["N"]) == (str(tmp_path), 20)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["redrawn-N=20"]


def test_without_redraw_nothing_shipped_is_drawn(executed, tmp_path):
    out = ["--out", str(tmp_path / "out")]
    done = CliRunner().invoke(cli.main, ["figures", "fig6", "--scale", "smoke", *out])
    assert done.exit_code == 0, done.output
    ((_, parameters),) = executed
    assert not parameters.get("redraw") and "fig6 at scale smoke" in done.output


# While a notebook runs


def test_two_runs_in_one_folder_do_not_meet(tmp_path):
    "Their kernels have sockets of their own, and leave none behind."
    command = [
        sys.executable,
        "-m",
        "trainprove_nb.cli",
        "figures",
        "batchsize",
        "--redraw",
        "--out",
    ]
    runs = [
        subprocess.Popen([*command, name], cwd=tmp_path, stdout=PIPE, stderr=STDOUT, text=True)
        for name in ("one", "other")
    ]
    told = [r.communicate(timeout=600)[0] for r in runs]
    assert [r.returncode for r in runs] == [0, 0], told
    one, other = (tmp_path / n / "redrawn/batchsize/batchsize.csv" for n in ("one", "other"))
    assert one.read_bytes() == other.read_bytes()
    assert {p.name for p in tmp_path.iterdir()} == {"one", "other"}


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


def test_a_kernel_that_dies_is_told_in_one_sentence(tmp_path, monkeypatch):
    from nbclient.exceptions import DeadKernelError

    def dies(*_, **__):
        raise DeadKernelError("Kernel died")

    monkeypatch.setattr(cli.papermill, "execute_notebook", dies)
    refused(
        lambda: cli.run_notebook(cli.experiments()["fig6"], {}, tmp_path),
        "fig6 stopped",
        "kernel died",
        "fewer jobs",
        error=click.ClickException,
    )


@full
def test_full_output_folder(tmp_path):
    (tmp_path / "out/smoke/fig6").mkdir(parents=True)
    # papermill writes the notebook before it starts
    (tmp_path / "out/smoke/fig6/fig6.ipynb").symlink_to("/dev/full")
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
