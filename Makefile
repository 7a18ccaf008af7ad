# `make help` lists the targets. They need make, PyPI, and python3, 3.11 or newer, with venv.
# The path of this folder may hold spaces and quotes, so this file has only relative paths and starts programs
# through Python.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

# pip refuses a person's PIP_USER inside a virtual environment.
export PIP_USER := 0
unexport PYTHONPATH PYTHONHOME PYTHONSAFEPATH

.PHONY: help demo acceptance test cdk coverage mutants check benchmark honest cold sam-local lint build \
    release audit clean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' Makefile

demo: $(READY) ## a whole stack on an embedded AWS, step by step
	@$(BIN)/python -m examples

acceptance: $(READY) ## try it in a real AWS account: docs/acceptance.md
	@$(BIN)/python -m acceptance $(ARGS)

test: $(READY) ## the tests. ARGS="-k name" hands arguments to pytest
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(ARGS)

CDK := .venv/cdk
cdk: $(CDK)/ready ## the constructs in examples/cdk-*, by the CDK itself; needs node
	$(BIN)/python -m pytest tests/test_cdk.py $(ARGS)

lint: $(READY) ## ruff, mypy --strict and cfn-lint
	$(BIN)/python -m ruff check
	$(BIN)/python -m ruff format --check
	$(BIN)/python -m mypy
	$(BIN)/python $(BIN)/cfn-lint --append-rules tools/cfn_lint -- template.yaml examples/*.yaml

build: $(READY) ## what Lambda gets, without SAM or a network: build/
	rm -rf build
	@PATH="$$PWD/$(BIN):$$PATH" PIP_NO_INDEX=1 PIP_FIND_LINKS=../.venv/wheels \
	    $(MAKE) -C handler build-UsagePlanKeyFunction ARTIFACTS_DIR="$$PWD/build"

release: $(READY) ## the template, the artifact as a zip, and their checksums: build/
	rm -rf build
	@PATH="$$PWD/$(BIN):$$PATH" PIP_NO_INDEX=1 PIP_FIND_LINKS=../.venv/wheels \
	    $(MAKE) --silent -C handler build-UsagePlanKeyFunction ARTIFACTS_DIR="$$PWD/build/artifact"
	@$(BIN)/python .ci/release.py build/artifact build && rm -rf build/artifact

coverage: $(READY) ## the tests; fails if a line or a branch of handler/ is not taken
	$(BIN)/python -m coverage run -m pytest $(ARGS)
	$(BIN)/python -m coverage report

mutants: $(READY) ## find changes of the code that no test notices; an hour
	@$(BIN)/python -m tests.mutants $(ARGS)

check: $(READY) ## play every order of events in small worlds; 15 minutes
	@PYTHONPATH=.:handler $(BIN)/python -m tests.check $(ARGS)

benchmark: $(READY) ## everything at once, in virtual time: table and chart; 5 minutes
	@PYTHONPATH=.:handler $(BIN)/python -m benchmarks $(ARGS)

honest: $(READY) ## the same in real time, in a hundred processes
	@PYTHONPATH=.:handler $(BIN)/python -m benchmarks.honest $(ARGS)

cold: $(READY) ## cold start and warm cost under Lambda's runtime; four minutes
	@PYTHONPATH=.:handler $(BIN)/python -m benchmarks.cold $(ARGS)

sam-local: $(READY) ## SAM itself on every event; needs Docker: tests/sam_local.py
	@PYTHONPATH=.:handler $(BIN)/python -m tests.sam_local $(ARGS)

AUDIT := .venv/audit
define LICENCES
from importlib.metadata import distributions
for found in sorted(distributions(path=["build"]), key=lambda found: found.name.lower()):
    said = found.metadata
    named = [line.rpartition(" :: ")[2] for line in said.get_all("Classifier", []) if line.startswith("License ::")]
    print(f"{found.name:24}{found.version:14}{said['License-Expression'] or ', '.join(named) or said['License']}")
endef
audit: export LICENCES := $(LICENCES)
audit: $(READY) ## licences, known vulnerabilities, and checkov on the template
	@test -x $(AUDIT)/bin/pip-audit -a -x $(AUDIT)/bin/checkov || { $(BIN)/python -m venv --clear $(AUDIT) && \
	    $(AUDIT)/bin/python -m pip install --quiet --disable-pip-version-check --retries 1 \
	    pip-audit==2.10.1 checkov==3.3.30; } || true
	@if test -x $(AUDIT)/bin/checkov; then \
	    $(AUDIT)/bin/python -m checkov.main --file template.yaml --framework cloudformation --compact --quiet \
	        --skip-download && echo "checkov finds nothing in template.yaml without a reason beside it."; \
	else echo "NOT ASKED: PyPI gave no checkov, so nobody has looked at template.yaml."; fi
	@$(MAKE) --silent build
	@$(BIN)/python -c "$$LICENCES"
	@$(AUDIT)/bin/python -m pip_audit --progress-spinner off --path build >$(AUDIT)/log 2>&1; failed=$$?; \
	if grep -q "Fix Versions" $(AUDIT)/log; then cat $(AUDIT)/log; exit 1; \
	elif test $$failed = 0 && ! grep -q "Skip Reason" $(AUDIT)/log; then echo "PyPI knows of no vulnerability in these."; \
	else echo "NOT ASKED: PyPI gave no answer about some or all of these, so their vulnerabilities are unknown. Why: $(AUDIT)/log"; fi

clean: ## away with .venv, build and all caches
	rm -rf .venv build .aws-sam .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find handler emulators tests examples benchmarks tools -name __pycache__ -prune -exec rm -rf {} +

$(READY): export PYTHON := $(PYTHON)
$(READY): tests/requirements.txt tests/runtime.txt handler/requirements.txt
	@"$$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "Python 3.11 or newer is needed, here as python3 or as make PYTHON=/path/to/it. Found: $$("$$PYTHON" --version 2>&1)" >&2; exit 1; }
	@"$$PYTHON" -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "$$PYTHON lacks venv or ensurepip; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@"$$PYTHON" -I tests/environment.py $^

$(CDK)/ready: $(READY) examples/cdk-python/requirements.txt examples/cdk-typescript/package.json
	@command -v npm >/dev/null || { echo "make cdk needs node and npm; neither is installed here" >&2; exit 1; }
	@echo "Fetching the CDK into $(CDK) (once, 670 MB, two minutes)"
	@$(BIN)/python -m venv --clear $(CDK)
	@$(CDK)/bin/python -m pip install --quiet --disable-pip-version-check \
	    --requirement examples/cdk-python/requirements.txt
	@cp examples/cdk-typescript/package.json $(CDK)
	@cd $(CDK) && npm install --silent --no-audit --no-fund --no-package-lock
	@touch $@
