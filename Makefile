# Everything a newcomer needs: `make demo`, `make test`. Each sets up .venv once, then runs.
PYTHON ?= python3
# For people with a package index of CPU-only torch builds: make demo INSTALL_FLAGS="--index ..."
INSTALL_FLAGS ?=
# Threads that wait must not spin: on a busy machine that slows torch down.
export OMP_WAIT_POLICY ?= PASSIVE
BIN := .venv/bin
STAMP := .venv/.installed
RUNS ?= runs
DEMO_FLAGS ?=
# Where the tests that take minutes are looked for.
SLOW ?= tests

.PHONY: demo test check lint slow browser messages screenshots compose lock clean setup

setup: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "POPMI needs Python 3.11 or newer; $(PYTHON) is older. Use: make PYTHON=python3.11 ..."; exit 1; }
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv .venv || { echo "no venv module: on Debian, apt-get install python3-venv"; rm -rf .venv; exit 1; }
	@echo "setting up .venv (a minute or two; torch is large)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^uv==' requirements.lock)"
	@# Compiled here: where PYTHONDONTWRITEBYTECODE is set, every program would compile torch anew.
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --compile-bytecode $(INSTALL_FLAGS) -r requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

demo: $(STAMP)
	@folder=$(RUNS)/demo-$$(date +%Y%m%d-%H%M%S) && \
	$(BIN)/popmi simulate deploy/demo.toml --out "$$folder" $(DEMO_FLAGS) && \
	echo && echo "Look at it: open $$folder/report.html, or run" && \
	echo "    $(BIN)/popmi serve $(RUNS)" && echo "and open http://127.0.0.1:8080"

# One file of tests a core, in its order, each of one thread: nets of tests are too small for threads to help.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 8 --dist loadfile

# What takes minutes: real servers, sites that are killed, Ray, every group. One after the other: they have processes of
# their own, and some wait for heartbeats that a busy machine makes late.
slow: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow --durations 20 $(SLOW)

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy popmi_core server client
	$(BIN)/lint-imports

check: lint test

browser: $(STAMP)
	$(BIN)/python -m pytest -m "browser and not slow" tests/browser

# Pictures of the pages in docs/dashboard, of phantom data; needs chromium.
screenshots: $(STAMP)
	PYTHONPATH=$(CURDIR) $(BIN)/python benchmarks/dashboard/screenshots.py --out docs/dashboard

# Gathers the pages' texts: what is new or was changed waits in dashboard.po for its translation.
messages: $(STAMP)
	$(BIN)/pybabel -q extract -F babel.cfg --no-location --sort-output --project POPMI --copyright-holder "the POPMI authors" -o build/dashboard.pot .
	$(BIN)/pybabel -q update -i build/dashboard.pot -d server/dashboard/locale -D dashboard -l zh_Hant --no-fuzzy-matching --ignore-obsolete --ignore-pot-creation-date

# Builds the image, runs three sites for two rounds in containers, then a second run with a sixth site, down and up
# again, then a hospital by deploy/site/compose.yaml and a run whose parts are killed; takes them down; logs lie in runs/compose-test.
compose: $(STAMP)
	@docker compose version >/dev/null 2>&1 && docker version >/dev/null 2>&1 || { echo "make compose needs a running Docker engine with Compose 2.24 or newer: docker compose version, docker version"; exit 1; }
	$(BIN)/python -m pytest -m compose tests/compose

# The lock holds versions only: no addresses, and without py3nj, a Fortran build that planar groups do not need.
lock: $(STAMP)
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --no-header \
	  --no-annotate --no-emit-index-url --no-emit-find-links --upgrade --quiet -o requirements.lock
	sed -i -E "/^py3nj==/d; s/python_full_version < '3\.13' and //; s/ and python_full_version < '3\.13'//; s/ ; python_full_version < '3\.13'$$//" requirements.lock

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
