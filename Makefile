# Everything is installed in .venv and nowhere else; a second run of a target is quick and works offline.
PYTHON ?= python3
TORCH ?= torch==2.13.0
SAM2 ?= sam2==1.1.0
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo
SHAPES := "red star, blue ring, something falling"
STAMP := $(VENV)/.installed

.PHONY: help install browser demo demo-lavida test style quality completions docs clean

help:
	@echo "make demo        set up, make a small archive, scan and render it"
	@echo "make demo-lavida the same with LAVIDA, on videos of the coloured shapes that its small checkpoint knows"
	@echo "make test        set up and run the tests"
	@echo "make install     set up .venv only"
	@echo "make browser     install a Chromium for the tests of the report where there is none"
	@echo "make style       format and lint"
	@echo "make quality     what CI checks besides the tests: format, lint, types, scripts"
	@echo "make completions regenerate shell completions and docs/cli.md"

install: $(STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "vadcli needs Python 3.11 or newer: make install PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@# the sam2 package, a second backend for the mask decoder; its own dependency list would replace torch, so it gets none
	$(BIN)/python -m pip install --quiet "hydra-core>=1.3.2" "iopath>=0.1.10" setuptools wheel
	SAM2_BUILD_CUDA=0 $(BIN)/python -m pip install --quiet --no-build-isolation --no-deps "$(SAM2)" || \
		echo "sam2 could not be installed; transformers' SAM2 does the same"
	@touch $(STAMP)

# Tests of the report need a Chromium; without one they are skipped.
browser: install
	@command -v chromium || command -v chromium-browser || command -v google-chrome || \
		{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium; } || \
		$(BIN)/python -m playwright install chromium

$(DEMO)/footage/truth.csv: examples/synthetic_archive.py | $(STAMP)
	$(BIN)/python examples/synthetic_archive.py $(DEMO)/footage

demo: install $(DEMO)/footage/truth.csv
	$(BIN)/vadcli scan $(DEMO)/footage --root $(DEMO)/footage --out $(DEMO)/results --masks video
	$(BIN)/vadcli render $(DEMO)/footage --out $(DEMO)/results
	@echo
	@echo "One event per line: $(BIN)/vadcli events $(DEMO)/results --format csv"
	@echo "What was put in:    $(DEMO)/footage/truth.csv"
	@echo "How well it found:  $(BIN)/vadcli eval $(DEMO)/results --root $(DEMO)/footage/truth.csv"
	@echo "Look at:            $(DEMO)/results/rendered/"

$(DEMO)/shapes/ground_truth.csv: examples/coloured_shapes.py | $(STAMP)
	$(BIN)/python examples/coloured_shapes.py $(DEMO)/shapes --categories $(SHAPES)

demo-lavida: install $(DEMO)/shapes/ground_truth.csv
	$(BIN)/vadcli scan $(DEMO)/shapes --root $(DEMO)/shapes --out $(DEMO)/named --detector lavida --model lavida-tiny --categories $(SHAPES) --masks video
	$(BIN)/vadcli eval $(DEMO)/named --root $(DEMO)/shapes/ground_truth.csv --metrics frame
	$(BIN)/vadcli render $(DEMO)/shapes --out $(DEMO)/named
	@echo
	@echo "Look at:         $(DEMO)/named/rendered/"

test: install
	$(BIN)/python -m pytest -n 2 --dist worksteal

style: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

quality: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/shellcheck .ci/run

completions: install
	_VADCLI_COMPLETE=source_bash $(BIN)/vadcli > completions/vadcli.bash
	_VADCLI_COMPLETE=source_zsh $(BIN)/vadcli > completions/_vadcli
	_VADCLI_COMPLETE=source_fish $(BIN)/vadcli > completions/vadcli.fish
	$(BIN)/python -m typer vadcli.cli utils docs --name vadcli --title "Command reference" --output docs/cli.md

clean:
	rm -rf $(VENV) $(DEMO) build dist
