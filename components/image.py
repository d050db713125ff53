"""The one image of all steps; a deployment names its own, best by digest, in ICEAGGR_IMAGE."""

import os

EXAMPLE_IMAGE = "registry.example.org/iceaggr:0.1.0"
"""Stands for yours: no cluster can pull it. Makefile and manifests/image name the same."""
IMAGE = os.environ.get("ICEAGGR_IMAGE") or EXAMPLE_IMAGE
