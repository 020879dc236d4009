# calosim: `make` prints the targets. ARGS="..." adds options to the training and tool targets; SEED is that of `make data`.
.DEFAULT_GOAL := help
SHELL := /bin/bash -o pipefail
PYTHON ?= python3
# An environment and the versions in it: the pinned ones, or those of `make test-lowest` and `make test-newest`.
VENV := .venv
CONSTRAINTS := constraints.txt
BIN := $(VENV)/bin
CALOSIM := $(BIN)/calosim
STAMP := $(VENV)/.installed
DATA := data/zn.root
EMPTY := data/zn-empty.root
SEED ?= 1
STRATEGY ?= gd
PLAN ?= conf/study/compare.yaml
# Tests are many small jobs: two processes halve the time, and the one that is done first takes over from the other.
JOBS ?= 2
PYTEST = $(BIN)/python -m pytest -n $(JOBS) --dist worksteal
# What CI runs with the lowest and the newest versions, TESTS=core: the chain, every file of settings, export and readers.
CORE := tests/test_chain.py tests/test_conf.py tests/export tests/data
need = $(or $($(1)),$(error name a run folder: make $@ $(1)=runs/...))
# Strategies that start from scratch are overlays on the teacher's configuration, the others start from the baseline.
SCRATCH := individual baseline_long
FINETUNE = $(if $(filter $(STRATEGY),$(SCRATCH)),-c conf/teacher.yaml) -c conf/finetune/$(STRATEGY).yaml \
  $(if $(filter $(STRATEGY),$(SCRATCH)),,--model.init_from $(call need,BASELINE)) $(if $(PARTICLE),--data.particle $(PARTICLE))

help:  ## print the targets
	@echo 'calosim: fast simulation of ALICE forward calorimeters'
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | sed -E 's/:.*## /\t/' | expand -t 18

$(STAMP): pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e '.[dev]'
	@touch $@

# The newest versions are what pip takes by itself. torch stays the pinned one: others are gigabytes.
.venv-newest.txt: constraints.txt
	grep '^torch==' $< > $@

# The lower bounds of pyproject.toml, and the newest versions of what calosim does not name.
.venv-lowest.txt: .venv-newest.txt pyproject.toml
	$(PYTHON) -m venv $(@:.txt=)
	$(@:.txt=)/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(@:.txt=)/bin/uv pip compile --quiet --resolution lowest-direct --extra dev --constraints $< --python $(@:.txt=) pyproject.toml --output-file $@

install: $(STAMP)  ## make .venv and install calosim with everything its targets need

$(DATA): | $(STAMP)
	$(CALOSIM) simulate --detector zn --primaries 10000 --responses_per_primary 20 --seed $(SEED) --out $@

data: $(DATA)  ## simulate the default data set, data/zn.root, with the toy Monte Carlo (about 200,000 responses)

calibrate: | $(STAMP)  ## table of the toy Monte Carlo against every published calibration figure
	$(BIN)/python -m calosim.montecarlo.calibration $(ARGS)

train-teacher: $(DATA)  ## train the shape model; ARGS="--trainer.max_epochs 5"
	$(CALOSIM) fit -c conf/teacher.yaml $(ARGS)

train-student: $(DATA)  ## distill a student from TEACHER=runs/teacher/...; ARGS="--model.losses.channel.weight 0.005"
	$(CALOSIM) fit -c conf/student.yaml --model.init_from $(call need,TEACHER) $(ARGS)

train-focal: | $(STAMP)  ## FoCal-H teacher and students with and without the shower-center loss, compared
	$(CALOSIM) compare --plan conf/study/focal_h.yaml $(ARGS)

ablation: | $(STAMP)  ## the student's four variants over three seeds, compared; ARGS="--dry-run"
	$(CALOSIM) compare --plan conf/study/ablation.yaml $(ARGS)

finetune: $(DATA)  ## fine-tune BASELINE=runs/teacher/... for one particle; STRATEGY=gd PARTICLE=lambda
	$(CALOSIM) fit $(FINETUNE) $(ARGS)

compare: | $(STAMP)  ## the whole fine-tuning study, PLAN=conf/study/compare.yaml; ARGS="--jobs 2"
	$(CALOSIM) compare --plan $(PLAN) $(ARGS)

explain: | $(STAMP)  ## SHAP values: PHOTONS=runs/photonsum/... [SHOWER=runs/teacher/...] OUT=runs/explain
	$(CALOSIM) explain --photons $(call need,PHOTONS) $(if $(SHOWER),--shower $(SHOWER)) --out $(or $(OUT),runs/explain) $(ARGS)

report: | $(STAMP)  ## one HTML page about RUNS="runs/a,runs/b" (default runs), OUT=report.html
	$(CALOSIM) report --runs "[$(or $(RUNS),runs)]" --out $(or $(OUT),report.html) $(ARGS)

$(EMPTY): | $(STAMP)
	$(CALOSIM) simulate --detector zn --primaries 10000 --responses_per_primary 2 --keep_empty true --seed $(SEED) --out $@

train-acceptance: $(EMPTY)  ## train the model of whether there is a response at all, on data/zn-empty.root
	$(CALOSIM) fit -c conf/acceptance.yaml $(ARGS)

export: | $(STAMP)  ## files for ALICE O2: SHOWER=runs/student/... PHOTONS=runs/photonsum/... [ACCEPTANCE=runs/acceptance/...] OUT=runs/export
	$(CALOSIM) export --shower $(call need,SHOWER) --photons $(call need,PHOTONS) $(if $(ACCEPTANCE),--acceptance $(ACCEPTANCE)) --out $(or $(OUT),runs/export) $(ARGS)

train-photons: $(DATA)  ## train the photon-sum model; ARGS="-c conf/photons/published.yaml"
	$(CALOSIM) fit -c conf/photons.yaml $(ARGS)

demo: | $(STAMP)  ## simulate, train, generate, evaluate, explain and report in three to four minutes; results in demo/
	@rm -rf demo && mkdir -p demo
	$(CALOSIM) simulate -c conf/demo/simulate.yaml --out demo/zn.root
	$(CALOSIM) simulate -c conf/demo/simulate.yaml --primaries demo/zn.root --seed 2 --out demo/zn-other-seed.root
	$(CALOSIM) simulate --primaries demo/zn.root --split test --responses_per_primary 250 --match_sums 8 --seed 3 --out demo/zn-same-sums.root
	$(CALOSIM) fit -c conf/photons.yaml -c conf/demo/photons.yaml --run demo/photons
	$(CALOSIM) fit -c conf/teacher.yaml -c conf/demo/teacher.yaml --run demo/teacher
	$(CALOSIM) generate --shower demo/teacher --photons demo/photons --primaries conf/demo/primaries.csv --responses 100 --out demo/generated.root
	$(CALOSIM) evaluate -c conf/demo/evaluate.yaml --shower demo/teacher --photons "[demo/photons]" --floor demo/zn-other-seed.root --shape_floor demo/zn-same-sums.root --out demo/evaluation
	$(CALOSIM) explain -c conf/demo/explain.yaml
	$(CALOSIM) report --runs "[demo]" --title "calosim demo" --out demo/report.html

test: | $(STAMP)  ## lint, types and tests (eight to ten minutes on two cores); JOBS=4
	$(MAKE) --no-print-directory lint
	$(MAKE) --no-print-directory pytest

pytest: | $(STAMP)
	$(PYTEST) $(patsubst core,$(CORE),$(TESTS))

test-lowest:  ## tests with the lowest versions that pyproject.toml allows, in .venv-lowest; TESTS=core for a part
test-newest:  ## tests with the newest versions, in .venv-newest; TESTS=core for a part
test-lowest test-newest: test-%:
	$(MAKE) --no-print-directory pytest VENV=.venv-$* CONSTRAINTS=.venv-$*.txt

test-all: | $(STAMP)  ## all tests, the slow ones too
	$(PYTEST) -m "slow or not slow"

lint: | $(STAMP)  ## ruff (lint and format) and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: | $(STAMP)  ## the site of docs/ in docs/_build/html, its warnings errors
	$(BIN)/python -m sphinx -W --keep-going --quiet -b html docs docs/_build/html

bench: | $(STAMP)  ## speed of split coordinates, and of flows side by side with nflows and zuko; ARGS="--quick"
	$(BIN)/python -m benchmarks.splits $(ARGS)
	$(BIN)/python -m benchmarks.flows --size demo $(ARGS)
	$(BIN)/python -m benchmarks.flows --size reference $(ARGS)
	$(BIN)/python -m benchmarks.loading

bench-gpu: | $(STAMP)  ## speed of split coordinates and of pixel flows on a CUDA device
	$(BIN)/python -m benchmarks.splits --device cuda --batches 1 256 4096
	$(BIN)/python -m benchmarks.flows_gpu

peers: | $(STAMP)  ## flow matching, GAN, VAE and pixel flows beside the default, 2, 10 and 30 minutes; ARGS="--jobs 2 --each '{minutes: [2]}'"
	OMP_NUM_THREADS=1 $(CALOSIM) compare --plan conf/study/peers.yaml $(ARGS)

clean:  ## remove the virtual environments, the demo and caches; data/ and runs/ stay
	rm -rf $(VENV) .venv-lowest* .venv-newest* demo docs/_build docs/reference/_*.md docs/reference/api .pytest_cache .ruff_cache .mypy_cache *.egg-info

.PHONY: help install data calibrate train-teacher train-photons train-acceptance train-student train-focal ablation finetune compare explain report export demo docs test pytest test-lowest test-newest test-all lint bench bench-gpu peers clean
