# What a developer types. On a fresh machine this needs make and Python 3.10 or newer (3.11 is the
# tested one); everything else is installed into .venv and .venvs/. `make help` lists the targets.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

# Python for every environment: python3.11 when there is one, else python3. Override: make PYTHON=...
PYTHON ?= $(shell for p in python3.11 python3; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && echo "$$p" && break; done)
# Test processes at once, further arguments for pytest, and the dbt versions that `make test` runs.
WORKERS ?= 2
ARGS ?=
TEST_MATRIX ?= 1.8,1.12,v2

# dbt versions with an environment of their own; 1.11 is the one in .venv.
MATRIX := 1.8 1.9 1.10 1.12 v2
# The Airflows that the DAGs are tested on, each apart from dbt.
AIRFLOWS := .venvs/airflow .venvs/airflow-2.11
# dbt v2 loads DuckDB as a shared library, and this npm package ships it. Keep it at the version of
# duckdb in requirements/dev.txt: an older library cannot read what a newer DuckDB wrote.
DUCKDB_NODE_VERSION := 1.5.6-r.1
# Azure's emulator, for the tests of az:// archives; the package ships its JavaScript only.
AZURITE := azurite@3.37.0
NODE_ARCH := $(if $(filter aarch64 arm64,$(shell uname -m)),arm64,x64)
DUCKDB_NODE := @duckdb/node-bindings-linux-$(NODE_ARCH)@$(DUCKDB_NODE_VERSION)

comma := ,
UV := .venv/bin/uv
# Named by version, so that another version is another file to make.
LIBDUCKDB := .venvs/dbt-v2/lib-duckdb/.installed-$(DUCKDB_NODE_VERSION)
export UV_PYTHON_DOWNLOADS := never
export UV_HTTP_TIMEOUT ?= 180
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# Nothing that the tests or the demo start may call home or look for a cloud's metadata server.
quiet_env := DBT_SEND_ANONYMOUS_USAGE_STATS=false DO_NOT_TRACK=1 AWS_EC2_METADATA_DISABLED=true
in_venv := $(quiet_env) PATH="$(CURDIR)/.venv/bin:$$PATH"

# $(call install,ENVIRONMENT,ARGUMENTS): with uv, or with pip where uv could not be installed.
# Bytecode is compiled now, since each test starts many short dbt processes.
install = if [ -x $(UV) ]; then \
	  $(UV) pip install --quiet --compile-bytecode --python $(1)/bin/python $(2); \
	else $(1)/bin/python -m pip install --quiet $(2); fi

# In a worktree .venv and .venvs may be links to those of another checkout: what they lead to is not
# cleared from here, where it would be gone for whoever works there.
own = if [ -L $(1) ]; then \
	  echo "$(1) is a link to $$(readlink $(1)), which make does not make anew from here." >&2; \
	  echo "Run make there, or remove the link to have an environment of its own." >&2; exit 1; fi

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

# ---- use -------------------------------------------------------------------------------------

.PHONY: demo test test-matrix lint types format bench
demo: install ## the whole story on an embedded DuckDB project
	@$(in_venv) dbt-recover demo

test: install $(AIRFLOWS) .venvs/azurite .venvs/warehouses $(foreach v,$(filter-out 1.11,$(subst $(comma), ,$(TEST_MATRIX))),.venvs/dbt-$(v)) ## all tests; ARGS="-k name" for some of them
	@$(in_venv) DBT_RECOVER_MATRIX=$(TEST_MATRIX) python -m pytest -n $(WORKERS) --dist worksteal -m "not airflow_cluster" $(ARGS)

.PHONY: test-cluster
test-cluster: install .venvs/airflow ## Airflow with CeleryExecutor, Redis, PostgreSQL and S3: a worker is lost
	@$(in_venv) python -m pytest -m airflow_cluster $(ARGS)

test-matrix: install envs ## the recovery tests on every dbt version
	@$(in_venv) DBT_RECOVER_MATRIX=all python -m pytest -n $(WORKERS) --dist worksteal -m matrix $(ARGS)

lint: install ## ruff: rules and format
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .

types: install .venvs/airflow ## mypy, strict; the DAGs against Airflow 3's own types
	@.venv/bin/mypy
	@MYPYPATH=dags .venv/bin/mypy --python-executable .venvs/airflow/bin/python --cache-dir .mypy_cache/dags dags

format: install ## mend what ruff can mend
	@.venv/bin/ruff check --fix .
	@.venv/bin/ruff format .

bench: install ## the benchmarks, one after another (BENCH=plan for one)
	@set -e; for file in $(if $(BENCH),benchmarks/$(BENCH).py,$(filter-out benchmarks/_%,$(wildcard benchmarks/*.py))); do \
	  echo "==> $$file"; $(in_venv) python "$$file"; done

# ---- environments ----------------------------------------------------------------------------

.PHONY: install envs $(MATRIX:%=.venvs/dbt-%) $(AIRFLOWS) .venvs/azurite .venvs/warehouses
install: .venv/.installed ## .venv: dbt-recover (editable), dbt 1.11, test tools
envs: $(MATRIX:%=.venvs/dbt-%) $(AIRFLOWS) .venvs/azurite .venvs/warehouses ## every other environment, in .venvs/
$(MATRIX:%=.venvs/dbt-%) $(AIRFLOWS) .venvs/warehouses: %: %/.installed
.venvs/dbt-v2: $(LIBDUCKDB)

.venv/.bootstrapped: requirements/bootstrap.txt
	@test -n "$(PYTHON)" || { \
	  echo "dbt-recover needs Python 3.10 or newer, and python3 here is: $$(python3 --version 2>&1)." >&2; \
	  echo "Install Python 3.11, or name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(call own,.venv)
	@echo "==> .venv: creating it with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv --clear .venv || { \
	  echo "$(PYTHON) cannot make virtual environments (on Debian: apt-get install python3-venv)." >&2; exit 1; }
	@echo "==> .venv: $$(grep '==' $<)"
	@.venv/bin/python -m pip install --quiet -r $< || echo "==> .venv: no uv; going on with pip, which is slower"
	@touch $@

.venv/.dependencies: requirements/dev.txt .venv/.bootstrapped
	@echo "==> .venv: $<"
	@$(call install,.venv,-r $<)
	@touch $@

.venv/.installed: pyproject.toml .venv/.dependencies
	@echo "==> .venv: dbt-recover, editable"
	@$(call install,.venv,--no-deps --no-build-isolation -e .)
	@.venv/bin/python -m compileall -q src  # as for one that is installed as a package
	@touch $@

$(MATRIX:%=.venvs/dbt-%/.installed) $(AIRFLOWS:%=%/.installed) .venvs/warehouses/.installed: .venvs/%/.installed: requirements/%.txt .venv/.bootstrapped
	@$(call own,.venvs)
	@$(call own,.venvs/$*)
	@echo "==> .venvs/$*: $<"
	@if [ -x $(UV) ]; then $(UV) venv --quiet --clear --python .venv/bin/python .venvs/$*; \
	  else .venv/bin/python -m venv --clear .venvs/$*; fi
	@$(call install,.venvs/$*,-r $<)
	@touch $@

# Without npm the tests on v2 skip and say so; the next make tries again.
$(LIBDUCKDB): .venvs/dbt-v2/.installed
	@if ! command -v npm >/dev/null; then \
	  echo "==> .venvs/dbt-v2: no npm here, so no libduckdb.so: dbt v2 cannot build on DuckDB (on Debian: apt-get install npm)"; \
	elif [ "$$(uname -s)" != Linux ]; then \
	  echo "==> .venvs/dbt-v2: libduckdb.so is fetched on Linux only: dbt v2 cannot build on DuckDB here"; \
	else \
	  echo "==> .venvs/dbt-v2: $(DUCKDB_NODE) (libduckdb.so)"; \
	  rm -rf $(@D) && mkdir -p $(@D) && \
	  npm pack --silent --pack-destination $(@D) $(DUCKDB_NODE) >/dev/null && \
	  tar -xzf $(@D)/*.tgz -C $(@D) --strip-components=1 package/libduckdb.so && \
	  rm $(@D)/*.tgz && touch $@; \
	fi

# Without npm the tests of az:// archives skip and say so; the next make tries again.
.venvs/azurite:
	@if ! command -v npm >/dev/null; then \
	  echo "==> $@: no npm here (on Debian: apt-get install npm)"; \
	elif [ ! -f $@/.installed-$(AZURITE) ]; then \
	  echo "==> $@: $(AZURITE)"; \
	  rm -rf $@ && mkdir -p $@ && \
	  npm install --silent --no-audit --no-fund --ignore-scripts --prefix $@ $(AZURITE) >/dev/null && \
	  touch $@/.installed-$(AZURITE) || \
	  echo "==> $@: npm could not install it: the tests of az:// archives will skip"; \
	fi

# ---- upkeep ----------------------------------------------------------------------------------

compile := $(UV) pip compile --quiet --universal --python-version 3.10 --no-emit-index-url \
	--annotation-style line --custom-compile-command "make requirements"

.PHONY: requirements clean distclean
requirements: .venv/.bootstrapped ## compile requirements/*.txt anew (ARGS=--upgrade for newer versions)
	@echo "==> requirements/dev.txt"
	@$(compile) $(ARGS) pyproject.toml requirements/dev.in -o requirements/dev.txt
	@set -e; for name in airflow warehouses $(MATRIX:%=dbt-%); do \
	  echo "==> requirements/$$name.txt"; $(compile) $(ARGS) requirements/$$name.in -o requirements/$$name.txt; done
	@echo "==> requirements/airflow-2.11.txt"
	@$(compile) --exclude-newer 2025-11-01 $(ARGS) requirements/airflow-2.11.in -o requirements/airflow-2.11.txt

clean: ## what builds, checks and dbt leave; the environments stay
	@rm -rf build dist target logs .hypothesis .mypy_cache .pytest_cache .ruff_cache
	@find src tests dags benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
	@rm -rf src/dbt_recover/demo_project/target src/dbt_recover/demo_project/logs

distclean: clean ## the environments too
	@rm -rf .venv .venvs
