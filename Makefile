# Every target does its own set-up; all that a machine needs is make and Python 3.11 or newer.
PYTHON ?= python3
INSTALL = pip install --quiet --constraint constraints.txt --editable

.PHONY: serve develop test check format test-serving soak fuzz slow-clients images requirements try-compose clean

# serve: the server with the shipped model on 127.0.0.1:8000, without torch
serve: .venv-serve/ready
	.venv-serve/bin/python -m app $(ARGS)

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

# images: what docker compose runs, with their version and commit in their labels
images:
	docker build -f docker/serve.Dockerfile --target cpu -t centernet-service:cpu $(LABELS) .
	docker build -f docker/serve.Dockerfile --target cuda -t centernet-service:cuda $(LABELS) .
	docker build -f docker/train.Dockerfile -t centernet-train $(LABELS) .
LABELS = --label org.opencontainers.image.version="$$(sed -n 's/^__version__ = "\(.*\)"/\1/p' app/__init__.py)" \
	--label org.opencontainers.image.revision="$$(git describe --always --dirty --abbrev=40 --exclude='*')"

# requirements: pins what the images install, by hash; the versions are those of constraints.txt
requirements: .venv/ready
	echo "setuptools>=77" | $(COMPILE) - -o docker/requirements/build.txt
	$(COMPILE) pyproject.toml --extra otel -o docker/requirements/serve.txt
	$(COMPILE) pyproject.toml --extra otel --extra cuda -o docker/requirements/cuda.txt
	$(COMPILE) pyproject.toml --extra train -o docker/requirements/train.txt
COMPILE = .venv/bin/uv pip compile --quiet --generate-hashes --universal --python-version 3.13 --no-annotate \
	--constraint constraints.txt --custom-compile-command "make requirements"

# try-compose: builds and runs all of docker-compose.yml that a machine without a GPU can; needs a Docker engine
try-compose: .venv/ready
	.venv/bin/python -m tests.compose $(ARGS)

clean:
	rm -rf .venv .venv-serve .venv-test-serving

.venv-serve/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-serve
	.venv-serve/bin/$(INSTALL) .
	touch $@

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/$(INSTALL) ".[train,dev]"
	touch $@

.venv-test-serving/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-test-serving
	.venv-test-serving/bin/$(INSTALL) ".[dev]"
	touch $@
