# `make run` and `make test` work on a fresh Debian with Python 3.11; everything lands in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# `make run` trains this long; the laptop configuration itself asks for 10
TRAIN_MINUTES ?= 5
comma := ,
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"$$/\1/p' src/iceaggr/__init__.py)

# what a shell sets for another Python, or another pip, is not for this one
unexport PYTHONHOME PYTHONPATH PYTHONSTARTUP PYTHONSAFEPATH PYTHONUSERBASE PYTHONWARNINGS \
  PYTHONOPTIMIZE PYTHONINSPECT PIP_USER PIP_TARGET PIP_PREFIX

.PHONY: setup run test test-training test-image test-cluster test-all fuzz nightly lint up down bench gpu image manifests tools sbom audit

# An environment is kept while it is what it would be if it were made now: of these files, in this
# folder, by this Python. Compared are contents and paths, since time stamps say nothing in a checkout,
# a copy or a moved folder; anything else is made from nothing, so that no package stays that no file
# names any more. Without PYTHON on the command line the Python that made it is the right one.
# $(call environment,FOLDER,FILES,arguments of pip install)
define environment
@python=$(if $(filter file,$(origin PYTHON)),$(1)/bin/python,$(PYTHON)); \
made_from() { { cat $(2) && pwd -P && "$$1" -VV; } 2>&1 | cksum; }; \
if [ ! -e $(1)/.installed ] || [ "$$(made_from $$python)" != "$$(cat $(1)/.installed)" ]; then \
  echo "installing into $(1) (a minute or two)" && rm -f $(1)/.installed && \
  $(PYTHON) -m venv --clear $(1) && \
  $(1)/bin/pip install --quiet --disable-pip-version-check $(3) && \
  made_from $(1)/bin/python > $(1)/.installing && mv $(1)/.installing $(1)/.installed; \
fi
endef

setup:
	$(call environment,$(VENV),pyproject.toml constraints.txt,-c constraints.txt -e ".[local$(comma)dev]")

# simulate events, run every step against a real object store and MLflow server, show the figures
run: setup
	@mkdir -p .iceaggr
	@$(BIN)/python pipeline.py run --max-train-minutes $(TRAIN_MINUTES) --summary .iceaggr/summary.json

# the same services, kept running for looking around
up: setup
	@$(BIN)/python -m iceaggr.local_services up

down: setup
	@$(BIN)/python -m iceaggr.local_services down

# two workers of one thread each: more threads than cores only wait for each other
test: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not gpu and not cluster"

# twenty kills at random moments, two processes against one
test-training: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal -m slow tests/training

# the stage of the image that holds our code, without torch, compared with the sources; skipped
# without docker, podman or, as root, buildah
test-image: setup
	$(BIN)/pytest -m slow tests/docker/test_application_stage.py

# on the cluster that KF_PIPELINES_ENDPOINT and the kubeconfig name: docs/runbook.md
test-cluster: setup
	$(BIN)/pytest -m cluster tests/cluster

test-all: setup
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[sdk]"
	$(BIN)/pytest --hypothesis-profile=exploring -m "not cluster"

# every reader of outside bytes under a coverage-guided fuzzer; corpus and findings in build/fuzz
FUZZ_MINUTES ?= 60
fuzz: setup
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[fuzz]"
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --minutes $(FUZZ_MINUTES)

# what takes too long for every change
nightly:
	$(MAKE) test-all
	$(MAKE) fuzz

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	$(BIN)/iceaggr bench shard
	$(BIN)/iceaggr bench loader
	$(BIN)/iceaggr bench streaming
	$(BIN)/iceaggr bench train

# on a machine with a GPU, where torch was installed with CUDA: its tests, then its figures
gpu: setup
	$(BIN)/pytest -m gpu
	$(BIN)/iceaggr bench train --config configs/baseline_1m.yaml
	$(BIN)/iceaggr bench train --config configs/best.yaml

# the image of all steps, with docker, podman or buildah; see docker/build.sh for the variables
# given on the command line or in the environment; otherwise manifests/image says which
OVERLAY_IMAGE := $(IMAGE)
IMAGE ?= registry.example.org/iceaggr:$(VERSION)
image:
	@IMAGE="$(IMAGE)" docker/build.sh

# everything that kubectl applies, rendered and checked; what has a problem never replaces the files in
# build/manifests. Without IMAGE and
# NAMESPACE the overlays say which
NAMESPACE ?=
OVERLAYS := existing standalone
RENDERED := build/manifests/unchecked
manifests: setup
	@rm -rf $(RENDERED) && mkdir -p $(RENDERED)
	@$(foreach o,$(OVERLAYS),kubectl kustomize manifests/overlays/$(o) > $(RENDERED)/$(o).yaml &&) true
	@$(foreach o,$(OVERLAYS),$(BIN)/python -m manifests.objects rename $(RENDERED)/$(o).yaml \
	  --image "$(OVERLAY_IMAGE)" --namespace "$(NAMESPACE)" &&) true
	@ICEAGGR_IMAGE="$(or $(OVERLAY_IMAGE),$$($(BIN)/python -m manifests.objects image))" \
	  $(BIN)/python -m manifests.objects pipeline --namespace "$(or $(NAMESPACE),kubeflow)" \
	  $(addprefix --check ,$(wildcard manifests/overlays/*/*/parameters.env)) \
	  $(RENDERED)/pipeline.yaml
	@$(BIN)/python -m manifests.check $(RENDERED)/*.yaml
	@mv $(RENDERED)/*.yaml build/manifests/ && rmdir $(RENDERED) && ls build/manifests/*.yaml

# tools that look at the installation from outside; they are no part of it
TOOLS := .venv-tools
tools:
	$(call environment,$(TOOLS),audit-tools.txt,-r audit-tools.txt)

# all parts with version and licence, as CycloneDX
sbom: setup tools
	@mkdir -p build
	@sed 's/^dynamic = .*/version = "$(VERSION)"/' pyproject.toml > build/described.toml
	@$(TOOLS)/bin/cyclonedx-py environment $(BIN)/python --pyproject build/described.toml \
	  --output-reproducible --output-format JSON --output-file build/sbom.json
	@echo "wrote build/sbom.json"

# known vulnerabilities of the pinned versions; what cannot be looked up is an error, not a pass
audit: setup tools
	$(TOOLS)/bin/pip-audit --strict --requirement constraints.txt --no-deps --disable-pip
