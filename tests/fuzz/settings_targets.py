"""Settings and small documents: the configuration, the normalisation, pointers, a run folder."""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path
from typing import Any

from iceaggr.config import load_config, parse_config
from iceaggr.normalization_document import Normalization, parse_normalization
from iceaggr.steps.documents import EvaluationPointer, ModelPointer, read_document
from iceaggr.steps.run_folder import RunFolder
from tests.fuzz.damage import damage_json, damage_part, damage_yaml, pack, unpack
from tests.fuzz.target import Target

CONFIGS = Path(__file__).parents[2] / "configs"


def _is_finite(document: Any) -> bool:
    if isinstance(document, dict):
        return all(map(_is_finite, document.values()))
    if isinstance(document, list | tuple):
        return all(map(_is_finite, document))
    return not isinstance(document, float) or math.isfinite(document)


def config() -> Target:
    path = Path(tempfile.gettempdir()) / f"iceaggr-fuzz-{os.getpid()}.yaml"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        found = load_config(path)
        document = found.model_dump(mode="json")
        assert _is_finite(document)
        assert parse_config(document) == found

    seeds = tuple(file.read_bytes() for file in sorted(CONFIGS.glob("*.yaml")))
    return Target("config", seeds, damage_yaml, read)


def normalization() -> Target:
    def read(data: bytes) -> None:
        found = parse_normalization(data, "file:///normalization.json")
        assert _is_finite(found.model_dump())
        assert parse_normalization(found.to_json()) == found

    seeds = (Normalization.seed().to_json().encode(), Normalization.raw().to_json().encode())
    return Target("normalization", seeds, damage_json, read)


def documents() -> Target:
    """The two pointers between the later steps and the settings of a run folder."""
    folder = Path(tempfile.mkdtemp(prefix="iceaggr-fuzz-"))
    names = ("model.json", "evaluation.json", "run.json")

    def read(data: bytes) -> None:
        for name, part in zip(names, unpack(data, len(names)), strict=True):
            (folder / name).write_bytes(part)
        assert read_document(ModelPointer, folder / "model.json").n_steps >= 0
        headline = read_document(EvaluationPointer, folder / "evaluation.json")
        assert headline.n_events >= 0
        assert _is_finite(headline.model_dump())
        run = RunFolder.open(folder)
        context = run.context()
        assert "://" in context.work_uri
        assert isinstance(run.raw_uri, str)

    seeds = pack([part.encode() for part in (_model_pointer(), _evaluation_pointer(), _run())])
    return Target("documents", (seeds,), damage_part([damage_json] * 3), read)


def _model_pointer() -> str:
    pointer = ModelPointer(
        model_uri="file:///m",
        manifest_digest="0" * 16,
        mlflow_run_id="",
        n_steps=3,
        stopped_because="n_epochs",
        started_from="scratch",
    )
    return pointer.model_dump_json()


def _evaluation_pointer() -> str:
    figures = dict.fromkeys(("mean", "mean_error", "median", "median_error", "p68", "p68_error"), 1)
    row = {"name": "model", "title": "Model", **{f"{k}_deg": v for k, v in figures.items()}}
    digests = dict.fromkeys(("model_digest", "data_digest", "events_sha256"), "0" * 64)
    uris = {"events_uri": "file:///e", "report_uri": "file:///r"}
    headline = {**digests, **uris, "n_events": 2, "table": [row]}
    return EvaluationPointer.model_validate(headline).model_dump_json()


def _run() -> str:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "run"
        RunFolder.create(path, "file:///raw", "", "iceaggr", parse_config({}))
        return (path / "run.json").read_text()
