# Every target does its own set-up; all that a machine needs is make and Python 3.11 or newer.
PYTHON ?= python3
INSTALL = pip install --quiet --constraint constraints.txt --editable
VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' app/__init__.py)

.PHONY: serve serve-ray develop test weights check format test-serving bench check-gpu soak fuzz slow-clients images \
	requirements try-compose push licences sbom version notes clean

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

# weights: train what is shipped anew and export it: make weights DATA=FOLDER, the one of train.json, val.json and images/
weights: .venv/ready
	test -n "$(DATA)"
	$(TRAIN) train training/configs/photos.toml --data-root "$(DATA)" $(ARGS)
	cp runs/photos/best.pt model/weights/default.pt
	$(TRAIN) export runs/photos/best.pt model/weights/default.onnx --precision int8 $(ON_DATA)
	$(TRAIN) export runs/photos/best.pt model/weights/default-fp32.onnx $(ON_DATA)
	$(TRAIN) export runs/photos/best.pt model/weights/fast.onnx --precision int8 --input-size 256 $(ON_DATA)
TRAIN = .venv/bin/python -m training
ON_DATA = --annotations "$(DATA)/val.json" --images "$(DATA)/images" \
	--train-annotations "$(DATA)/train.json" --train-images "$(DATA)/images"

# check: lint, format, types, which package may import which, and the workflows
check: .venv/ready
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	.venv/bin/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
	.venv/bin/check-jsonschema --quiet --builtin-schema vendor.dependabot .github/dependabot.yml
	.venv/bin/zizmor --offline --quiet --min-severity medium .github

format: .venv/ready
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

# test-serving: the server's tests where there is no torch
test-serving: .venv-test-serving/ready
	! .venv-test-serving/bin/python -c "import torch" 2>/dev/null
	.venv-test-serving/bin/python -m pytest tests/app $(ARGS)

# bench: what a detection costs here part by part, the limit, and what the server reaches
bench: .venv-serve/ready
	.venv-serve/bin/python -m app bench $(ARGS)

# check-gpu: what an NVIDIA GPU finds beside the CPU, and what the server reaches of it; exits with 77 where there is none
check-gpu: .venv-gpu/ready
	.venv-gpu/bin/python -m tests.gpu $(ARGS)

# soak: overload a real server, then 20 minutes of full load with clients that disconnect
soak: .venv/ready
	.venv/bin/python -m tests.load.soak $(ARGS)

# fuzz: 120,000 damaged pictures and bodies for a real server
# (the variables have glibc give freed memory back, so that what grows is what leaks)
fuzz: .venv/ready
	MALLOC_ARENA_MAX=1 MALLOC_MMAP_THRESHOLD_=1048576 .venv/bin/python -m tests.load.fuzz $(ARGS)

# slow-clients: a regular client beside 1,000 slow ones; needs slowhttptest
slow-clients: .venv/ready
	.venv/bin/python -m tests.slow_clients

# images: what docker compose runs, with their version and commit in their labels
images:
	docker build -f docker/serve.Dockerfile --target cpu -t centernet-service:cpu $(LABELS) .
	docker build -f docker/serve.Dockerfile --target cuda -t centernet-service:cuda $(LABELS) .
	docker build -f docker/train.Dockerfile -t centernet-train $(LABELS) .
LABELS = --label org.opencontainers.image.version=$(VERSION) \
	--label org.opencontainers.image.revision="$$(git describe --always --dirty --abbrev=40 --exclude='*')"

# push: those images under their version: make push IMAGE=registry.example.com/team/centernet-service
push:
	test -n "$(IMAGE)"
	docker tag centernet-service:cpu "$(IMAGE):$(VERSION)"
	docker tag centernet-service:cuda "$(IMAGE):$(VERSION)-cuda"
	docker push "$(IMAGE):$(VERSION)"
	docker push "$(IMAGE):$(VERSION)-cuda"

# licences: of all that the server installs; one that pyproject.toml does not allow is an error
licences: .venv/ready .venv-serve/ready
	.venv/bin/pip-licenses --python .venv-serve/bin/python

# sbom: the same as a bill of materials, CycloneDX in JSON
sbom: .venv/ready .venv-serve/ready
	mkdir -p dist
	.venv/bin/cyclonedx-py environment --output-reproducible --output-file dist/centernet-service-$(VERSION).cdx.json \
		.venv-serve

version:
	@echo $(VERSION)

# notes: what CHANGELOG.md says of this version
notes:
	@sed -n '/^## \[$(VERSION)\]/,/^## \[/ { /^## \[/d; p; }' CHANGELOG.md

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
	rm -rf .venv .venv-serve .venv-ray .venv-gpu .venv-test-serving

.venv-serve/ready: pyproject.toml constraints.txt app/__init__.py
	$(PYTHON) -m venv .venv-serve
	.venv-serve/bin/$(INSTALL) .
	touch $@

.venv-ray/ready: pyproject.toml constraints.txt app/__init__.py
	$(PYTHON) -m venv .venv-ray
	.venv-ray/bin/$(INSTALL) ".[ray]"
	touch $@

.venv-gpu/ready: pyproject.toml constraints.txt app/__init__.py
	$(PYTHON) -m venv .venv-gpu
	.venv-gpu/bin/$(INSTALL) ".[cuda]"
	touch $@

.venv/ready: pyproject.toml constraints.txt app/__init__.py
	$(PYTHON) -m venv .venv
	.venv/bin/$(INSTALL) ".[train,dev]"
	touch $@

.venv-test-serving/ready: pyproject.toml constraints.txt app/__init__.py
	$(PYTHON) -m venv .venv-test-serving
	.venv-test-serving/bin/$(INSTALL) ".[dev]"
	touch $@
