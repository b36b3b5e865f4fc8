# Every target does its own setup and needs only make and Python 3.11 or newer.
PYTHON ?= python3
INSTALL = pip install --quiet --constraint constraints.txt --editable
VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' app/__init__.py)

.PHONY: serve serve-ray develop test weights check format test-serving bench check-gpu soak fuzz slow-clients images \
	requirements try-compose push licences sbom version notes clean

# serve: the server with the shipped model on 127.0.0.1:8000, without torch
serve: .venv-serve/ready
	.venv-serve/bin/python -m app $(ARGS)

# serve-ray: replicas of the server behind Ray Serve, configured in docker/ray/serve.yaml
serve-ray: .venv-ray/ready
	RAY_USAGE_STATS_ENABLED=0 .venv-ray/bin/serve run docker/ray/serve.yaml

# develop: a .venv for training and development
develop: .venv/ready

# test: the whole suite
test: .venv/ready
	.venv/bin/python -m pytest $(ARGS)

# weights: retrain and export the shipped models: make weights DATA=FOLDER, with train.json, val.json and images/
weights: .venv/ready
	test -n "$(DATA)"
	$(TRAIN) train training/configs/photos.toml --data-root "$(DATA)" $(ARGS)
	cp runs/photos/best.pt model/weights/default.pt
	$(TRAIN) export runs/photos/best.pt model/weights/default.onnx $(ON_DATA) $(IN_INT8)
	$(TRAIN) export runs/photos/best.pt model/weights/default-fp32.onnx $(ON_DATA)
	$(TRAIN) export runs/photos/best.pt model/weights/fast.onnx --input-size 256 $(ON_DATA) $(IN_INT8)
TRAIN = .venv/bin/python -m training
ON_DATA = --annotations "$(DATA)/val.json" --images "$(DATA)/images"
IN_INT8 = --precision int8 --train-annotations "$(DATA)/train.json" --train-images "$(DATA)/images"

# check: lint, format, types, import rules, and the workflows
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

# test-serving: the server's tests without torch installed
test-serving: .venv-test-serving/ready
	! .venv-test-serving/bin/python -c "import torch" 2>/dev/null
	.venv-test-serving/bin/python -m pytest tests/app $(ARGS)

# bench: the cost of each part of a detection, the limit without HTTP, and the server's throughput
bench: .venv-serve/ready
	.venv-serve/bin/python -m app bench $(ARGS)

# check-gpu: compares an NVIDIA GPU's detections with the CPU's, and measures the server; exits with 77 without a GPU
check-gpu: .venv-gpu/ready
	.venv-gpu/bin/python -m tests.gpu $(ARGS)

# soak: overload a real server, then 20 minutes of full load with clients that disconnect
soak: .venv/ready
	.venv/bin/python -m tests.load.soak $(ARGS)

# fuzz: 120,000 damaged images and bodies for a real server
# (the variables make glibc return freed memory, so that growth means a leak)
fuzz: .venv/ready
	MALLOC_ARENA_MAX=1 MALLOC_MMAP_THRESHOLD_=1048576 .venv/bin/python -m tests.load.fuzz $(ARGS)

# slow-clients: a normal client while 1,000 slow ones attack; needs slowhttptest
slow-clients: .venv/ready
	.venv/bin/python -m tests.load.slow_clients $(ARGS)

# images: the images of docker compose, labelled with version and commit
images:
	docker build -f docker/serve.Dockerfile --target cpu -t centernet-service:cpu $(LABELS) .
	docker build -f docker/serve.Dockerfile --target cuda -t centernet-service:cuda $(LABELS) .
	docker build -f docker/train.Dockerfile -t centernet-train $(LABELS) .
LABELS = --label org.opencontainers.image.version=$(VERSION) \
	--label org.opencontainers.image.revision="$$(git describe --always --dirty --abbrev=40 --exclude='*')"

# push: push the server's images, tagged with their version: make push IMAGE=registry.example.com/team/centernet-service
push:
	test -n "$(IMAGE)"
	docker tag centernet-service:cpu "$(IMAGE):$(VERSION)"
	docker tag centernet-service:cuda "$(IMAGE):$(VERSION)-cuda"
	docker push "$(IMAGE):$(VERSION)"
	docker push "$(IMAGE):$(VERSION)-cuda"

# licences: list those of the server's packages; one that pyproject.toml does not allow is an error
licences: .venv/ready .venv-serve/ready
	.venv/bin/pip-licenses --python .venv-serve/bin/python

# sbom: the same as a bill of materials, in CycloneDX JSON
sbom: .venv/ready .venv-serve/ready
	mkdir -p dist
	.venv/bin/cyclonedx-py environment --output-reproducible --output-file dist/centernet-service-$(VERSION).cdx.json \
		.venv-serve

version:
	@echo $(VERSION)

# notes: this version's section of CHANGELOG.md
notes:
	@sed -n '/^## \[$(VERSION)\]/,/^## \[/ { /^## \[/d; p; }' CHANGELOG.md

# requirements: pin the images' packages by hash, in the versions of constraints.txt
requirements: .venv/ready
	echo "setuptools>=77" | $(COMPILE) - -o docker/requirements/build.txt
	$(COMPILE) pyproject.toml --extra otel -o docker/requirements/serve.txt
	$(COMPILE) pyproject.toml --extra otel --extra cuda -o docker/requirements/cuda.txt
	$(COMPILE) pyproject.toml --extra train -o docker/requirements/train.txt
COMPILE = .venv/bin/uv pip compile --quiet --generate-hashes --universal --python-version 3.13 --no-annotate \
	--constraint constraints.txt --custom-compile-command "make requirements"

# try-compose: build and run all of docker-compose.yml that works without a GPU; needs a Docker engine
try-compose: .venv/ready
	.venv/bin/python -m tests.compose $(ARGS)

clean:
	rm -rf $(ENVIRONMENTS)

ENVIRONMENTS = .venv .venv-serve .venv-ray .venv-gpu .venv-test-serving
EXTRAS =
.venv/ready: EXTRAS = [train,dev]
.venv-ray/ready: EXTRAS = [ray]
.venv-gpu/ready: EXTRAS = [cuda]
.venv-test-serving/ready: EXTRAS = [dev]
$(ENVIRONMENTS:%=%/ready): pyproject.toml constraints.txt app/__init__.py
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/$(INSTALL) ".$(EXTRAS)"
	touch $@
