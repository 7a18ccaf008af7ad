# make demo, test, coverage, mutants, campaign, benchmark, honest, cold, lint, build, audit, clean.
# Needed: make, PyPI, and python3, 3.11 or newer, with venv.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

# A setting for a person's own packages has no place in a virtual environment.
export PIP_USER := 0
unexport PYTHONPATH PYTHONHOME

.PHONY: demo test coverage mutants campaign benchmark honest cold sam-local lint build audit clean

demo: $(READY) ## the whole thing on an embedded AWS, step by step
	@$(BIN)/python -m examples.demo

test: $(READY) ## ARGS="-k name" hands arguments to pytest
	$(BIN)/python -m pytest $(ARGS)

coverage: $(READY) ## the same, then the lines and branches of handler/ that no test takes; fails if there is one
	$(BIN)/coverage run -m pytest $(ARGS)
	$(BIN)/coverage report

mutants: $(READY) ## changes the code in one place at a time: which changes no test notices; an hour. ARGS="retry queue": these modules
	@$(BIN)/python -m tests.mutants $(ARGS)

benchmark: $(READY) ## everything at once, in virtual time: the table, and benchmarks/waves.svg; about a minute
	@PYTHONPATH=.:handler $(BIN)/python -m benchmarks $(ARGS)

campaign: $(READY) ## every fault at every call of every story, and malformed events: counts; ten minutes on two cores
	@PYTHONPATH=.:handler $(BIN)/python -m tests.campaign $(ARGS)

honest: $(READY) ## the same in real time, in a hundred processes
	@PYTHONPATH=.:handler $(BIN)/python -m benchmarks.honest $(ARGS)

cold: $(READY) ## cold start and warm cost under Lambda's runtime, next to the floor; about four minutes, on Linux
	@PYTHONPATH=.:handler $(BIN)/python -m benchmarks.cold $(ARGS)

sam-local: $(READY) ## SAM itself, with Docker: validate, build, and invoke every event; see tests/sam_local.py
	@PYTHONPATH=.:handler $(BIN)/python -m tests.sam_local $(ARGS)

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/cfn-lint --append-rules tools/cfn_lint -- template.yaml examples/*.yaml

build: $(READY) ## what AWS gets, without sam: build/
	rm -rf build
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(MAKE) -C handler build-UsagePlanKeyFunction ARTIFACTS_DIR="$(CURDIR)/build"

AUDIT := .venv/audit
define LICENCES
from importlib.metadata import distributions
for found in sorted(distributions(path=["build"]), key=lambda found: found.name.lower()):
    said = found.metadata
    named = [line.rpartition(" :: ")[2] for line in said.get_all("Classifier", []) if line.startswith("License ::")]
    print(f"{found.name:24}{found.version:14}{said['License-Expression'] or ', '.join(named) or said['License']}")
endef
audit: export LICENCES := $(LICENCES)
audit: $(READY) ## the artifact's packages, their licences, and what PyPI knows against them; where it cannot ask, it says so
	@PIP_NO_INDEX=1 PIP_FIND_LINKS="$(CURDIR)/.venv/wheels" $(MAKE) --silent build
	@$(BIN)/python -c "$$LICENCES"
	@test -x $(AUDIT)/bin/pip-audit || { $(BIN)/python -m venv --clear $(AUDIT) && $(AUDIT)/bin/python -m pip install \
	    --quiet --disable-pip-version-check --retries 1 pip-audit==2.10.1; } || true
	@$(AUDIT)/bin/pip-audit --progress-spinner off --path build >$(AUDIT)/log 2>&1; failed=$$?; \
	if grep -q "Fix Versions" $(AUDIT)/log; then cat $(AUDIT)/log; exit 1; \
	elif test $$failed = 0 && ! grep -q "Skip Reason" $(AUDIT)/log; then echo "PyPI knows of no vulnerability in these."; \
	else echo "NOT ASKED: PyPI gave no answer about some or all of these, so their vulnerabilities are unknown. Why: $(AUDIT)/log"; fi

clean:
	rm -rf .venv build .aws-sam .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find handler tests examples benchmarks tools -name __pycache__ -prune -exec rm -rf {} +

$(READY): tests/requirements.txt tests/runtime.txt handler/requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "Python 3.11 or newer is needed, here as python3 or as make PYTHON=/path/to/it. Found: $$($(PYTHON) --version 2>&1)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "$(PYTHON) lacks venv or ensurepip; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@echo "Setting up .venv (once, about a minute)"
	@$(PYTHON) -m venv --clear .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement tests/requirements.txt
	@# The tests build the artifact, and without a network.
	@$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --dest .venv/wheels --requirement handler/requirements.txt
	@# Lambda's own runtime interface, and the emulator of it that is in SAM's wheel: of the rest of SAM nothing is needed.
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target .venv/runtime --requirement tests/runtime.txt
	@test ! -d .venv/runtime/samcli || \
	    mv .venv/runtime/samcli/local/rapid/aws-lambda-rie-$$(uname -m | sed s/aarch64/arm64/) .venv/runtime/aws-lambda-rie
	@rm -rf .venv/runtime/samcli .venv/runtime/aws_sam_cli-* .venv/runtime/bin
	@touch $@
