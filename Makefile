# `make repro` and `make test` are all a user needs; `make help` lists the rest.
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: help repro train verify test check format lint types lock-check corpus-check \
	bench picture lock clean

help:  ## List the targets
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

repro: .venv/repro.done  ## Install, and run the pipeline as params.yaml has it
	dvc repro

train: repro  ## Train a small GPT on the tokens, or go on with the one begun
	python examples/train.py $(if $(wildcard build/train/checkpoint.pt),--resume)

verify: .venv/repro.done  ## Check every byte of the token files against their manifests
	python -m pipeline verify

test: .venv/test.done  ## Install the test tools too, and run the tests
	python -m pytest

check: format lint types test lock-check corpus-check  ## All that CI checks

format: .venv/test.done
	ruff format --check .

lint: .venv/test.done
	ruff check .

types: .venv/test.done
	mypy

# DVC says what it would run; nothing to run means that dvc.lock is true.
lock-check: .venv/test.done
	python -m pip check
	@dvc repro --dry --allow-missing > .venv/dry.log 2>&1 && \
		! grep -E 'Running stage|ERROR' .venv/dry.log || \
		{ echo 'dvc.lock is not up to date: run `make repro` and commit it'; exit 1; }

corpus-check: .venv/test.done
	@rm -rf build/corpus-check && python -m story_writer --out build/corpus-check
	cmp data/train.txt build/corpus-check/train.txt
	cmp data/valid.txt build/corpus-check/valid.txt

bench: .venv/bench.done  ## Measure against others; tokenizers on a text: TEXT=FILE
	python benchmarks/bench_train.py $(if $(TEXT),"$(TEXT)")
	python benchmarks/bench_encode.py $(if $(TEXT),"$(TEXT)")
	$(if $(TEXT),,python benchmarks/bench_batching.py)

picture: .venv/test.done  ## Draw the pictures of the README, reports/*.svg
	python reports/draw.py

lock: .venv/test.done  ## Pin what pyproject.toml asks for in requirements.lock
	UV_CUSTOM_COMPILE_COMMAND='make lock' uv pip compile --quiet --universal \
		--python-version 3.10 --all-extras --no-annotate pyproject.toml \
		--output-file requirements.lock

clean:  ## Delete what was built and installed; DVC's cache stays
	rm -rf build .venv dvc_plots

# One environment; test and bench add their tools to it.
.venv/repro.done: pyproject.toml requirements.lock
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit( \
		"tiny_llm needs Python 3.10 or newer: make PYTHON=python3.12 repro")'
	@echo 'Installing into .venv: some minutes, 1.4 GB or more'
	$(PYTHON) -m venv .venv
	python -m pip install --quiet --constraint requirements.lock --editable .
	touch $@

.venv/test.done: .venv/repro.done
	python -m pip install --quiet --constraint requirements.lock --editable '.[dev]'
	touch $@

.venv/bench.done: .venv/repro.done
	python -m pip install --quiet --constraint requirements.lock --editable '.[bench]'
	touch $@
