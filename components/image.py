"""The one image of all steps; a deployment names its own, best by digest, in ICEAGGR_IMAGE."""

import os

IMAGE = os.environ.get("ICEAGGR_IMAGE", "iceaggr/iceaggr:0.1.0")
