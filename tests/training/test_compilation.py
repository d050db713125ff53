from __future__ import annotations

from pathlib import Path

import pytest
import torch

from iceaggr.config import ModelConfig, TrainingConfig
from iceaggr.errors import TrainingError
from iceaggr.models import DirectionModel, build_model
from iceaggr.normalization import Normalization
from iceaggr.training import compilation
from iceaggr.training.compilation import compile_for

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def built() -> DirectionModel:
    config = ModelConfig(d_model=16, n_heads=1, n_dom_layers=1, n_event_layers=1)
    return build_model(config, Normalization.seed())


def is_compiled(model: DirectionModel) -> bool:
    return model.event_transformer.layers._compiled is not None


def machine(monkeypatch: pytest.MonkeyPatch, *missing: str) -> None:
    """Stand on a machine with all it takes but what is missing."""
    monkeypatch.delenv("CC", raising=False)
    here = Path(__file__)
    header = here.with_name("missing") if "Python.h" in missing else here
    monkeypatch.setattr(compilation, "python_header", lambda: header)
    monkeypatch.setattr(compilation, "find_spec", lambda name: None if name in missing else name)
    monkeypatch.setattr(compilation, "which", lambda name: None if name in missing else name)


def test_auto_leaves_the_cpu_alone_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    model = built()
    with caplog.at_level("INFO", logger="iceaggr"):
        compile_for(model, CPU, TrainingConfig())
    assert not is_compiled(model)
    assert "layers are not compiled: the device is cpu" in caplog.text


def test_auto_compiles_for_a_gpu_that_has_all_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch)
    model = built()
    compile_for(model, GPU, TrainingConfig())
    assert is_compiled(model)


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        (["triton"], "torch came without Triton"),
        (["gcc", "clang"], "no C compiler"),
        (["Python.h"], "no C headers of Python"),
    ],
)
def test_what_is_missing_is_a_warning_or_an_error_as_configured(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    missing: list[str],
    words: str,
) -> None:
    machine(monkeypatch, *missing)
    model = built()
    compile_for(model, GPU, TrainingConfig(compile_layers="auto"))
    assert not is_compiled(model)
    assert [(r.levelname, words in r.message) for r in caplog.records] == [("WARNING", True)]
    with pytest.raises(TrainingError, match=f"layers cannot be compiled.*{words}"):
        compile_for(model, GPU, TrainingConfig(compile_layers="on"))


def test_heads_too_narrow_for_the_kernel_are_left_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    machine(monkeypatch)
    config = ModelConfig(d_model=16, n_heads=2, n_dom_layers=1, n_event_layers=1)
    model = build_model(config, Normalization.seed())
    compile_for(model, GPU, TrainingConfig())
    assert not is_compiled(model)
    assert "layers are not compiled: attention heads of width 8" in caplog.text
    with pytest.raises(TrainingError, match=r"cannot be compiled.*heads of width 8"):
        compile_for(model, GPU, TrainingConfig(compile_layers="on"))


def test_off_compiles_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch)
    model = built()
    compile_for(model, GPU, TrainingConfig(compile_layers="off"))
    assert not is_compiled(model)
