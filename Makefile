# Users need only `make repro` and `make test`; `make help` lists the rest.
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: help repro compare train verify test check check-rest format lint types \
	sweep lock-check corpus-check picture-check cluster-check readers-check bench \
	picture report-picture plots-page lock clean

help:  ## List the targets
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

repro: .venv/repro.done  ## Install, then run the pipeline with values from params.yaml
	dvc repro
	@echo "See what the data is like: open $(CURDIR)/build/report.html in a browser"

compare: .venv/repro.done  ## Compare vocab sizes: workspace, HEAD and its experiments
	@dvc exp show --md --sort-by bpe.vocab_size --drop '.*' --keep \
		'Experiment|bpe.vocab_size|.*encode-valid.json:bytes_per_token'

train: repro  ## Train a small GPT on the tokens, or resume training
	python examples/train.py $(if $(wildcard build/train/checkpoint.pt),--resume)

# docs/experiments.md explains it. A size that has been tried is not trained again.
VOCAB_SIZES = 512 1024 2048 4096
SOURCE = ../../data
JOBS = 2
sweep: .venv/test.done  ## Rank vocab sizes by bits per byte, in half an hour or more
	cd examples/sweep && for size in $(VOCAB_SIZES); do \
		dvc exp remove --quiet vocab-$$size 2> /dev/null; \
		dvc exp run --quiet --queue --name vocab-$$size \
			-S bpe.vocab_size=$$size -S 'fetch.source=$(SOURCE)' || exit; \
	done && dvc exp run --run-all --jobs $(JOBS) && python plot.py

verify: .venv/repro.done  ## Check every byte of the token files against their manifests
	tiny-llm verify

test: .venv/test.done  ## Install the test tools, then run the tests
	python -m pytest

# Everything but the tests: .ci/run runs these after `make test`.
check-rest: format lint types lock-check corpus-check picture-check

check: test check-rest  ## Check everything that CI checks

format: .venv/test.done
	ruff format --check .

lint: .venv/test.done
	ruff check .

types: .venv/test.done
	mypy

# dvc.lock is up to date if DVC would run no stage.
lock-check: .venv/test.done
	python -m pip check
	@dvc repro --dry --allow-missing > .venv/dry.log 2>&1 && \
		! grep -E 'Running stage|ERROR' .venv/dry.log || \
		{ echo 'dvc.lock is not up to date: run `make repro` and commit it'; exit 1; }

corpus-check: .venv/test.done
	@rm -rf build/corpus-check && python -m tools.story_writer --out build/corpus-check
	cmp data/train.txt build/corpus-check/train.txt
	cmp data/valid.txt build/corpus-check/valid.txt

picture-check: .venv/test.done
	python -m tools.draw_reports --check

cluster-check: .venv/cluster.done  ## Test a Ray cluster on loopback, in two minutes
	python -m pytest -n 0 tests/check_cluster.py

readers-check: .venv/readers.done  ## Read exported files with the trainers' packages
	PYTHONPATH=.venv/readers python -m pytest -n 0 tests/check_readers.py

bench: .venv/bench.done  ## Compare speed with other libraries (TEXT=FILE: on your text)
	python benchmarks/bench_train.py $(if $(TEXT),"$(TEXT)")
	python benchmarks/bench_encode.py $(if $(TEXT),"$(TEXT)")
	$(if $(TEXT),,python benchmarks/bench_batching.py)

picture: .venv/test.done  ## Draw the pictures in the README, reports/*.svg
	python -m tools.draw_reports

plots-page: .venv/test.done  ## Write the page of `dvc plots`, with Vega inside
	python -m tools.plots_page

report-picture: repro .venv/test.done  ## Photograph the report for the README (Chromium)
	python -m tools.report_picture

lock: .venv/test.done  ## Pin the dependencies of pyproject.toml in requirements.lock
	UV_CUSTOM_COMPILE_COMMAND='make lock' uv pip compile --quiet --universal \
		--python-version 3.10 --all-extras --no-annotate pyproject.toml \
		--output-file requirements.lock

clean:  ## Delete everything built and installed, except DVC's cache
	rm -rf build .venv dvc_plots

# One environment. `make test` and `make bench` add their tools to it.
INSTALL = python -m pip install --quiet --constraint requirements.lock --editable

.venv/repro.done: pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit( \
		"tiny_llm needs Python 3.10 or newer: make PYTHON=python3.12 repro")'
	@echo 'Installing into .venv takes some minutes and 1.4 GB or more'
	$(PYTHON) -m venv .venv
	$(INSTALL) '.[pipeline]'
	touch $@

.venv/test.done: .venv/repro.done
	$(INSTALL) '.[pipeline,dev]'
	touch $@

.venv/cluster.done: .venv/test.done
	$(INSTALL) '.[pipeline,dev,cluster]'
	touch $@

# Without dependencies, and in a folder of its own: they would change .venv.
.venv/readers.done: .venv/test.done tests/readers.txt
	rm -rf .venv/readers
	python -m pip install --quiet --no-deps --target .venv/readers -r tests/readers.txt
	touch $@

.venv/bench.done: .venv/repro.done
	$(INSTALL) '.[pipeline,bench]'
	touch $@
