#!/bin/sh
# Builds the image with the first engine that answers: docker, podman or buildah.
#
#   BASE_IMAGE   a Debian 12 image, best by digest
#   IMAGE        name and tag of the result; the tag is never moved: one commit, one tag
#   TORCH        torch requirement, e.g. torch==2.13.0 or torch==2.13.0+cpu
#   SYSTEM_PACKAGES  Debian packages to add, e.g. "gcc libc6-dev libpython3-dev" to compile for a GPU
#   IMAGE_FLAGS  further flags for the engine: `--build-arg PIP_INDEX_URL=...`, and with podman and
#                buildah mounts of certificates, of a pip configuration or of a folder of wheels
#                (`-v /host/pip.conf:/etc/pip.conf:ro`)
set -eu
cd "$(dirname "$0")/.."

BASE_IMAGE=${BASE_IMAGE:-docker.io/library/debian:12-slim}
IMAGE=${IMAGE:?name the image, e.g. IMAGE=registry.example.org/iceaggr:1.2.3}
TORCH=${TORCH:-torch==2.13.0}
SYSTEM_PACKAGES=${SYSTEM_PACKAGES:-}
IMAGE_FLAGS=${IMAGE_FLAGS:-}

if docker info >/dev/null 2>&1; then
  engine="docker build"
elif command -v podman >/dev/null; then
  engine="podman build --layers"
elif command -v buildah >/dev/null; then
  engine="buildah build --layers"
else
  echo "error: no image engine: neither docker (with a daemon), podman nor buildah" >&2
  exit 1
fi

version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' src/iceaggr/__init__.py)
commit=$(git describe --always --dirty --abbrev=40 --exclude='*' 2>/dev/null || true)
# git calls a checkout clean whatever files lie in it that it was never told of; the image holds them
case "$commit" in
*-dirty | "") ;;
*) if [ -n "$(git status --porcelain -- src components configs launch)" ]; then commit=$commit-dirty; fi ;;
esac

# shellcheck disable=SC2086  # the flags are several words
exec $engine $IMAGE_FLAGS \
  --file docker/Dockerfile \
  --build-arg "BASE_IMAGE=$BASE_IMAGE" \
  --build-arg "TORCH=$TORCH" \
  --build-arg "SYSTEM_PACKAGES=$SYSTEM_PACKAGES" \
  --build-arg "IMAGE=$IMAGE" \
  --build-arg "VERSION=$version" \
  --build-arg "COMMIT=${commit:-unknown}" \
  --tag "$IMAGE" \
  .
