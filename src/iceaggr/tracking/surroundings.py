"""What a run depended on besides its settings: code, versions, image, hardware."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

_PACKAGES = ("iceaggr", "torch", "numpy", "pyarrow", "mlflow", "kfp")


def surroundings() -> dict[str, str]:
    """Collect tags of the code; those that are empty are left out."""
    tags = {"code/commit": code_commit(), "code/image": os.environ.get("ICEAGGR_IMAGE", "")}
    tags["mlflow.source.git.commit"] = tags["code/commit"].removesuffix("-dirty")
    tags["mlflow.source.name"] = "iceaggr pipeline"
    versions = {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES}
    tags["code/versions"] = ", ".join(f"{name} {one}" for name, one in versions.items() if one)
    return {key: value for key, value in tags.items() if value}


def code_commit() -> str:
    """Name the git commit: of the image if it says so, else of the working tree; '' if unknown.

    Ends in `-dirty` when tracked files differ from the commit.
    """
    if told := os.environ.get("ICEAGGR_GIT_COMMIT"):
        return told
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        here = Path(__file__).parent
        done = subprocess.run(
            command, cwd=here, capture_output=True, text=True, timeout=10, encoding="utf-8"
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def hardware() -> str:
    """Describe processors, memory and GPUs in one line."""
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory_gib = psutil.virtual_memory().total / 2**30
    return f"{n_cores} cores, {memory_gib:.0f} GiB, {_gpus()}"


def _gpus() -> str:
    torch = sys.modules.get("torch")  # a step that computes has it; the others need no GPU
    if torch is None or not torch.cuda.is_available():
        return "no GPU"
    return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
