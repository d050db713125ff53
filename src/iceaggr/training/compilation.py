"""Whether the layers of a model are compiled for its device, and what is missing if not."""

from __future__ import annotations

import logging
import os
import sysconfig
from importlib.util import find_spec
from pathlib import Path
from shutil import which

import torch

from iceaggr.config import ModelConfig, TrainingConfig
from iceaggr.errors import TrainingError
from iceaggr.models import DirectionModel
from iceaggr.models.fused_attention import MIN_HEAD_WIDTH

logger = logging.getLogger(__name__)


def compile_for(model: DirectionModel, device: torch.device, config: TrainingConfig) -> None:
    """Compile the layers of a model where its device and the configuration say so, and log it.

    Raises: TrainingError if the configuration insists and it cannot be.
    """
    wanted, obstacle = config.compile_layers, _obstacle_to_compiling(device, model.config)
    if wanted == "on" and obstacle:
        raise TrainingError(
            "layers cannot be compiled",
            where="training.compile_layers",
            found=obstacle,
            expected="a GPU, Triton, a C compiler, Python's headers and heads of width "
            f"{MIN_HEAD_WIDTH} or more",
            remedy="Set training.compile_layers to auto or off, or install what is missing",
        )
    if wanted == "off" or obstacle:
        level = logging.WARNING if wanted == "auto" and device.type == "cuda" else logging.INFO
        logger.log(level, "layers are not compiled: %s", obstacle or "switched off")
        return
    logger.info("layers are compiled for %s: the first step takes a minute", device)
    model.compile_layers()


def _obstacle_to_compiling(device: torch.device, config: ModelConfig) -> str:
    if device.type != "cuda":
        return f"the device is {device.type}"
    head_width = config.d_model // config.n_heads
    if head_width < MIN_HEAD_WIDTH:
        return f"attention heads of width {head_width} (model.d_model / model.n_heads)"
    if find_spec("triton") is None:
        return "torch came without Triton"
    if not (os.environ.get("CC") or which("gcc") or which("clang")):
        return "no C compiler (gcc, clang or $CC)"
    if not python_header().is_file():
        return "no C headers of Python (python3-dev)"
    return ""


def python_header() -> Path:
    """Say where the C header lies that a compiled launcher of kernels includes."""
    return Path(sysconfig.get_path("include")) / "Python.h"
