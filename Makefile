# `make quickstart` shows the tool at work; `make test` runs every test.

VENV ?= .venv
BENCH_VENV := .venv-bench
SIZE ?= quick
CANDIDATES := $(or $(PYTHON),python3.13 python3.12 python3.11 python3)
UV := $(or $(wildcard $(VENV)/bin/uv),$(shell command -v uv 2>/dev/null))
# The lock names the versions that it was tested with, whichever index a machine uses elsewhere.
COMPILE = env -u UV_FIND_LINKS -u UV_INDEX -u UV_INDEX_URL -u UV_EXTRA_INDEX_URL \
	-u UV_DEFAULT_INDEX UV_NO_CONFIG=1 \
	$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-header --no-annotate --constraints requirements/constraints.in
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help quickstart test bench lock samples pictures clean
.DELETE_ON_ERROR:

help:
	@echo "make quickstart   install what the tool needs, score the sample, verify the result"
	@echo "make test         install the rest, then lint, type-check and run every test"
	@echo "make bench        measure it against others (SIZE=full: for the table in docs/)"
	@echo "make samples      make data_samples/ again"
	@echo "make pictures     take the pictures in the README again (needs chromium)"
	@echo "make lock         make requirements/*.txt again (needs uv)"
	@echo "make clean        remove what these made"

quickstart: $(VENV)/.main
	$(VENV)/bin/batchnorm-tool run configs/quickstart.yaml
	$(VENV)/bin/batchnorm-tool verify runs/digits

test: $(VENV)/.test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

bench: $(VENV)/.main $(BENCH_VENV)/.peers
	$(VENV)/bin/python -m benchmarks --size $(SIZE)

samples: $(VENV)/.test
	$(VENV)/bin/python data_samples/make_samples.py

# The compare page as the README shows it, in both colour schemes (0 is chromium's dark one).
pictures: $(VENV)/.main
	$(VENV)/bin/batchnorm-tool compare data_samples/digits_predictions.parquet \
		--key id --label label -o runs/picture --quiet
	for scheme in light=1 dark=0; do \
		chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --window-size=1280,608 \
			--blink-settings=preferredColorScheme=$${scheme#*=} \
			--screenshot=docs/compare-$${scheme%=*}.png runs/picture/comparison.html || exit 1; \
	done

clean:
	rm -rf $(VENV) $(BENCH_VENV) benchmarks/work runs/digits build dist *.egg-info
	rm -rf .pytest_cache .hypothesis .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps: each says that its lock is installed.
$(VENV)/.main: requirements/main.txt pyproject.toml | $(VENV)/pyvenv.cfg
	$(call install,$(VENV),--require-hashes -r requirements/main.txt)
	$(call install,$(VENV),--no-deps --no-build-isolation -e .)
	@touch $@

$(VENV)/.test: requirements/test.txt $(VENV)/.main
	$(call install,$(VENV),--require-hashes -r requirements/test.txt)
	@touch $@

# Ray and Spark, which the tool never imports; the same Python, so that the figures compare.
$(BENCH_VENV)/.peers: requirements/bench.txt | $(BENCH_VENV)/pyvenv.cfg
	$(call install,$(BENCH_VENV),--require-hashes -r requirements/bench.txt)
	@touch $@

ifdef UV
# Compiled once here: each start of TensorFlow would otherwise compile its modules again.
install = $(UV) pip install --quiet --compile-bytecode --python $(1)/bin/python $(2)
create = $(UV) venv --quiet --python "$$python" $(1)
else
install = $(1)/bin/python -m pip install --quiet $(2)
create = "$$python" -m venv $(1)
endif

# A name on the PATH proves nothing (version managers leave stubs that fail): each is run.
$(VENV)/pyvenv.cfg:
	@for name in $(CANDIDATES); do \
		python=$$($$name -c 'import sys; (3, 11) <= sys.version_info[:2] <= (3, 13) or sys.exit(1); print(sys.executable)' 2>/dev/null) \
			&& break || python=; \
	done; \
	if [ -z "$$python" ]; then \
		echo "No Python 3.11, 3.12 or 3.13 found. Tried: $(CANDIDATES)." >&2; \
		echo "Install one, or name it: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; \
		exit 1; \
	fi; \
	echo "Setting up $(VENV) with $$python (some minutes the first time)"; \
	$(call create,$(VENV))

$(BENCH_VENV)/pyvenv.cfg: | $(VENV)/pyvenv.cfg
	@python=$(VENV)/bin/python; $(call create,$(BENCH_VENV))

# The others get the versions of the libraries that the tool has: the figures compare.
lock:
	@[ -n "$(UV)" ] || { echo "make lock needs uv: python3 -m pip install uv" >&2; exit 1; }
	$(COMPILE) pyproject.toml > requirements/main.new
	$(COMPILE) --constraints requirements/main.new --extra test pyproject.toml > requirements/test.new
	$(COMPILE) --constraints requirements/main.new benchmarks/peers.in > requirements/bench.new
	@for name in main test bench; do \
		[ $$name = bench ] && source=benchmarks/peers.in || source=pyproject.toml; \
		{ echo "# Made by \`make lock\` from $$source: edit that."; \
		cat requirements/$$name.new; } > requirements/$$name.txt && rm requirements/$$name.new; \
	done
