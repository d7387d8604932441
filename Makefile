# What to draw, and how; set on the command line, as in `make figures SCALE=smoke`
FIGURE := all
SCALE  := mini
KIND   := generator
JOBS   := 2
OUT    :=
LAB    :=
REDRAW :=
SCRIPT :=
PYTHON := python3
# Let Python keep what it has compiled, even where the environment forbids it: else every process compiles torch anew, for 18 seconds
export PYTHONDONTWRITEBYTECODE :=

define HELP
trainprove_nb: was a generative model trained on another model's images?

  make audit      make two cases of which the truth is known, audit them, and write their reports
  make figures    run the experiment notebooks and draw their figures
  make test       check the code with ruff, then run the tests, JOBS + 1 files at a time
  make lint       check the code with ruff
  make benchmark  what the package adds to its models' bare work; with SCRIPT=, beside diffusers' own script
  make docs       build the documentation pages in _docs/ (no Quarto needed)
  make readme     run nbs/index.ipynb on the shipped results, and write README.md from it
  make clean      delete built pages and caches; .venv, models and figures stay
  make help       this text

Each target first builds .venv if it is missing or out of date. `make figures` takes

  FIGURE=$(FIGURE)     which experiment; `all` is every one of them
  SCALE=$(SCALE)     smoke (proves that all runs), mini (two CPU cores), gpu or paper (GPUs)
  JOBS=$(JOBS)         how many run at once
  OUT=$(OUT)           where figures go; empty is the program's own choice
  LAB=$(LAB)           where models and images are kept for next time; empty likewise
  REDRAW=$(REDRAW)        `yes`: draw from the numbers that come along, in seconds; empty: measure
  PYTHON=$(PYTHON) which Python (3.11 or later) .venv is made with

`make audit` takes JOBS, LAB and

  KIND=$(KIND)     of model that is suspected; or classifier

For example:  make figures FIGURE=fig6 JOBS=4 OUT=talk
A run that was stopped goes on where it was: give the same command again.
endef

.DEFAULT_GOAL := help
.PHONY: help venv audit figures lint test benchmark docs readme clean

help:
	$(info $(HELP))@:

venv: .venv/installed

.venv/installed: settings.ini setup.py constraints.txt
	@echo 'Installing into .venv, which takes some minutes the first time'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install -qq --disable-pip-version-check --no-compile -e '.[dev]' -c constraints.txt
	@touch $@

figures: venv
	.venv/bin/trainprove figures '$(FIGURE)' --scale '$(SCALE)' --jobs '$(JOBS)' \
	  $(if $(OUT),--out '$(OUT)') $(if $(LAB),--lab '$(LAB)') $(if $(REDRAW),--redraw)

audit: venv
	.venv/bin/trainprove audit demo --kind '$(KIND)' --jobs '$(JOBS)' $(if $(LAB),--lab '$(LAB)')

lint: venv
	@.venv/bin/ruff check --quiet
	@.venv/bin/ruff format --quiet --check

# One more than JOBS: a file that waits for a service, or for a program that it started, leaves a core idle
test: lint
	.venv/bin/python -m pytest tests -n "$$(( $(JOBS) + 1 ))" --dist loadscope

benchmark: venv
	.venv/bin/python tools/benchmark.py
	$(if $(SCRIPT),.venv/bin/python tools/against_script.py '$(SCRIPT)')

docs: venv
	.venv/bin/python tools/docs.py _docs

readme: venv
	.venv/bin/python tools/readme.py

clean:
	rm -rf _docs _proc build dist .pytest_cache
	find nbs tests tools trainprove_nb -type d \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +
