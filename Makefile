# Each target makes what it needs: a Python 3.11 or later is all that must be there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SOURCES := scanner index cli
CHECKED := $(SOURCES) tests benchmarks deploy
# Those of a folder of yours, an earlier commit, a GPU or a browser, which `bench` leaves out.
APART := applicability candidates canaries commands entries formats gpu large membership \
	out_of_memory partial pipelines planted repeated report search subjects update verdicts
# Hundreds of processes are started, and torch alone takes each a second and a half to compile.
export PYTHONDONTWRITEBYTECODE :=
BENCHMARKS := $(filter-out $(APART:%=benchmarks/bench_%.py),$(wildcard benchmarks/bench_*.py))

.PHONY: demo encoder test fuzz faults lint format wheel bench casestudy clean

encoder: $(READY)
	$(BIN)/python benchmarks/bundled_encoder.py

demo: $(READY)
	$(BIN)/deepssim-scan demo

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

fuzz: $(READY)
	$(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation -e '.[fuzz]'
	$(BIN)/python tests/fuzz/run.py --seconds $(or $(SECONDS_EACH),60)

faults: $(READY)
	$(BIN)/python tests/faults/run.py
	$(BIN)/python tests/faults/cluster_kills.py
	$(BIN)/python tests/faults/audit_kills.py
	$(BIN)/python tests/faults/power.py

lint: $(READY)
	$(BIN)/ruff check $(CHECKED)
	$(BIN)/ruff format --check $(CHECKED)
	$(BIN)/python -m pip install -q --no-deps --no-build-isolation -e . -C editable_mode=strict
	$(BIN)/mypy -p deepssim_scan
	$(BIN)/mypy tests/api_user.py
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m pip install -q --no-deps --no-build-isolation -e .

format: $(READY)
	$(BIN)/ruff check --fix $(CHECKED)
	$(BIN)/ruff format $(CHECKED)

wheel: $(READY)
	rm -rf build dist
	$(BIN)/python -m build --wheel --no-isolation

bench: $(READY)
	$(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation -e '.[bench]'
	for bench in $(BENCHMARKS); do $(BIN)/python $$bench || exit 1; done

casestudy: $(READY)
	$(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation -e '.[casestudy]'
	$(BIN)/python benchmarks/casestudy/run.py $(if $(IMAGES),--images $(IMAGES)) \
		$(if $(SUBJECTS),--subjects $(SUBJECTS)) $(if $(SSCD),--sscd $(SSCD))
	$(BIN)/python benchmarks/casestudy/seeds.py $(if $(IMAGES),--images $(IMAGES)) \
		$(if $(SUBJECTS),--subjects $(SUBJECTS))
	$(BIN)/python benchmarks/casestudy/write_docs.py

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt setuptools
	$(BIN)/python -m pip install -q -c constraints.txt --no-compile --no-build-isolation -e '.[dev]'
	touch $(READY)

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
