# Every target does its own set-up; all that a machine needs is make and Python 3.11 or newer.
PYTHON ?= python3
INSTALL = pip install --quiet --constraint constraints.txt --editable

.PHONY: serve serve-ray develop test check format test-serving soak fuzz slow-clients clean

# serve: the server with the shipped model on 127.0.0.1:8000, without torch
serve: .venv-serve/ready
	.venv-serve/bin/python -m app $(ARGS)

# serve-ray: the same as replicas behind Ray Serve, as docker/ray/serve.yaml says
serve-ray: .venv-ray/ready
	RAY_USAGE_STATS_ENABLED=0 .venv-ray/bin/serve run docker/ray/serve.yaml

# develop: a .venv to train and work in
develop: .venv/ready

# test: the whole suite
test: .venv/ready
	.venv/bin/python -m pytest $(ARGS)

# check: lint, format, types, and which package may import which
check: .venv/ready
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

format: .venv/ready
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

# test-serving: the server's tests where there is no torch
test-serving: .venv-test-serving/ready
	! .venv-test-serving/bin/python -c "import torch" 2>/dev/null
	.venv-test-serving/bin/python -m pytest tests/app $(ARGS)

# soak: overload a real server, then 20 minutes of full load with clients that vanish
soak: .venv/ready
	.venv/bin/python -m tests.load.soak $(ARGS)

# fuzz: 120,000 damaged pictures and bodies for a real server
# (the variables have glibc give freed memory back, so that what grows is what leaks)
fuzz: .venv/ready
	MALLOC_ARENA_MAX=1 MALLOC_MMAP_THRESHOLD_=1048576 .venv/bin/python -m tests.load.fuzz $(ARGS)

# slow-clients: a usual client beside 1,000 slow ones; needs slowhttptest
slow-clients: .venv/ready
	.venv/bin/python -m tests.slow_clients

clean:
	rm -rf .venv .venv-serve .venv-ray .venv-test-serving

.venv-serve/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-serve
	.venv-serve/bin/$(INSTALL) .
	touch $@

.venv-ray/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-ray
	.venv-ray/bin/$(INSTALL) ".[ray]"
	touch $@

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/$(INSTALL) ".[train,dev]"
	touch $@

.venv-test-serving/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-test-serving
	.venv-test-serving/bin/$(INSTALL) ".[dev]"
	touch $@
