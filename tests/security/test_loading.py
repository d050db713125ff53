"""Nothing that is read can run code: no pickle, no eval, no shell, no unsafe YAML."""

import ast
import hashlib
import io
import json
import os
import pickle
import subprocess
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch

from iceaggr.config import ModelConfig, load_config
from iceaggr.errors import IceaggrError
from iceaggr.models.bundle import load_model, save_model
from iceaggr.models.hierarchical import build_model
from iceaggr.normalization_document import Normalization
from iceaggr.storage import open_store
from iceaggr.training.checkpoint import Checkpoint, CheckpointFolder

ROOT = Path(__file__).parents[2]
FOLDERS = ("src", "components", "launch", "manifests", "benchmarks")
SOURCES = [ROOT / "pipeline.py", *(p for f in FOLDERS for p in sorted((ROOT / f).rglob("*.py")))]
RUNS_CODE = {
    *("pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"),
    *("torch.load", "torch.jit.load", "torch.hub.load", "torch.package", "numpy.load", "np.load"),
    *("pandas.read_pickle", "pd.read_pickle", "np.fromregex", "numpy.lib.format.read_array"),
    *("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "yaml.Loader"),
    *("yaml.UnsafeLoader", "yaml.FullLoader", "eval", "exec", "compile", "__import__"),
    *("os.system", "os.popen", "tarfile", "zipfile", "shutil.unpack_archive"),
}
# yaml.load takes its loader from us there: a SafeLoader that refuses equal keys
ALLOWED = {("src/iceaggr/config/experiment.py", "yaml.load")}


def names_used(tree):
    """List modules imported, and dotted names called or referred to."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute):
            yield ast.unparse(node)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield node.func.id


def dangers(source):
    """List what a source uses that can run code from data, keywords included."""
    tree = ast.parse(source)
    used = {name for name in names_used(tree) if name in RUNS_CODE}
    keywords = [
        (keyword.arg, keyword.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        for keyword in node.keywords
    ]
    for name, value in keywords:
        if (name, getattr(value, "value", None)) in (("allow_pickle", True), ("shell", True)):
            used.add(f"{name}=True")
    return used


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import pickle", {"pickle"}),
        ("from torch import load", {"torch.load"}),
        ("x = torch.load(path)", {"torch.load"}),
        ("f(allow_pickle=True)", {"allow_pickle=True"}),
        ("subprocess.run(x, shell=True)", {"shell=True"}),
        ("eval(x)", {"eval"}),
        ("re.compile(x); model.eval(); yaml.safe_load(x)", set()),
    ],
)
def test_dangers_are_recognised(source, found):
    assert dangers(source) == found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_source_reads_nothing_that_can_run_code(path):
    name = str(path.relative_to(ROOT))
    assert {
        danger for danger in dangers(path.read_text()) if (name, danger) not in ALLOWED
    } == set()


def test_settings_are_read_with_a_safe_loader(tmp_path):
    path, marker = tmp_path / "config.yaml", tmp_path / "ran"
    path.write_text(f"name: !!python/object/apply:os.mkdir [{str(marker)!r}]\n")
    with pytest.raises(IceaggrError, match="configuration is not YAML"):
        load_config(path)
    assert not marker.exists()


class Bomb:
    """Pickled, it makes a folder when it is unpickled."""

    def __init__(self, marker):
        self._marker = marker

    def __reduce__(self):
        return (os.mkdir, (str(self._marker),))


@pytest.fixture(params=["pickle", "torch", "numpy"])
def bomb(request, tmp_path):
    """The bytes of a bomb in each format that unpickles, and where it would go off."""
    marker, buffer = tmp_path / "ran", io.BytesIO()
    if request.param == "pickle":
        pickle.dump(Bomb(marker), buffer)
    elif request.param == "torch":
        torch.save(Bomb(marker), buffer)
    else:
        np.save(buffer, np.array([Bomb(marker)], dtype=object), allow_pickle=True)
    return buffer.getvalue(), marker


def test_bomb_goes_off_when_it_is_unpickled(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


def test_model_folder_of_bombs_is_refused(bomb, tmp_path):
    data, marker = bomb
    for name in ("model.json", "weights.safetensors", "geometry.csv"):
        (tmp_path / name).write_bytes(data)
    with pytest.raises(IceaggrError, match="not the document of a saved model"):
        load_model(open_store({}), tmp_path.as_uri())
    assert not marker.exists()


def test_weights_that_are_a_bomb_are_refused_though_every_hash_is_right(bomb, tmp_path):
    data, marker = bomb
    folder = tmp_path / "checkpoints" / "step-00000001-0123456789abcdef"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(data)
    files = {"model.safetensors": hashlib.sha256(data).hexdigest()}
    state = json.dumps({"format_version": 1, "files": files}).encode()
    (folder / "state.json").write_bytes(state)
    pointer = {"format_version": 1, "folders": [folder.name]}
    pointer["state_sha256"] = hashlib.sha256(state).hexdigest()
    (tmp_path / "checkpoints" / "latest.json").write_text(json.dumps(pointer))
    with pytest.raises(IceaggrError, match=r"checkpoint is damaged.*model\.safetensors"):
        CheckpointFolder(open_store({}), tmp_path.as_uri(), 2).read_latest()
    assert not marker.exists()


def test_reading_model_and_checkpoint_never_unpickles(saved_run):
    """In a process that ends when any unpickler looks up a class or a function, both are read."""
    script = f"""
import os, pickle, sys, iceaggr.steps.predict
from iceaggr.storage import open_store
from iceaggr.models.bundle import load_model
from iceaggr.training.checkpoint import CheckpointFolder

def watch(event, arguments):
    if event == "pickle.find_class":
        os._exit(99)

sys.addaudithook(watch)
store = open_store()
model = load_model(store, {saved_run + "/model"!r})
found = CheckpointFolder(store, {saved_run!r}, 2).read_latest()
print(len(model.model.state_dict()), len(found.tensors["model"]), flush=True)
pickle.loads(pickle.dumps(os.getpid))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 99, "the watch works: " + done.stderr
    counts = [int(count) for count in done.stdout.split()]
    assert min(counts) > 10, "both were read before"


@pytest.fixture
def saved_run(tmp_path):
    """A saved model, and a checkpoint of the same weights, as training writes them."""
    tiny = {"d_model": 16, "n_heads": 2, "n_dom_layers": 1, "n_event_layers": 1}
    model = build_model(ModelConfig(**tiny), Normalization.seed())
    geometry = resources.files("iceaggr.resources").joinpath("icecube86.csv").read_text()
    store, uri = open_store({}), tmp_path.as_uri()
    save_model(store, f"{uri}/model", model, geometry, {})
    tensors = {"model": dict(model.state_dict()), "optimizer": {}}
    CheckpointFolder(store, uri, 2).write(1, Checkpoint({"state": {}}, tensors))
    return uri
