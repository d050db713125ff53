import json
import subprocess
import sys
import urllib.request

import mlflow
import numpy as np
import pandas as pd
import pytest

from iceaggr.batches import iter_batches
from iceaggr.config import BatchConfig
from iceaggr.errors import RawDataError, TrackingError
from iceaggr.evaluation.event_table import predict_batches
from iceaggr.events.reading import read_raw_events
from iceaggr.models.bundle import DOCUMENT, load_model
from iceaggr.storage import open_store
from iceaggr.storage.uris import file_path
from iceaggr.tracking.model_package import build_package, fetch_bundle, input_example, requirements
from tests.events.raw_layout import write_raw_layout
from tests.models.sealing import edit_sealed


@pytest.fixture(scope="module")
def package(saved_model, tmp_path_factory):
    """The folder of a packed model."""
    folder = tmp_path_factory.mktemp("package")
    bundle = fetch_bundle(open_store(), saved_model, folder / "model")
    build_package(bundle, folder / "packed", {"run_id": "0" * 32})
    return folder / "packed"


@pytest.fixture(scope="module")
def pyfunc(package):
    return mlflow.pyfunc.load_model(str(package))


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """A raw layout: its URI and the pulses of its only file."""
    folder = tmp_path_factory.mktemp("raw")
    uri = write_raw_layout(folder, n_files=1, n_events_per_file=40)
    return uri, pd.read_parquet(folder / "train" / "batch_1.parquet").reset_index()


@pytest.fixture(scope="module")
def expected(saved_model, raw):
    """What evaluation's own path predicts."""
    store, loaded = open_store(), load_model(open_store(), saved_model)
    chunks = read_raw_events(store, raw[0], folder="train", detector=loaded.detector)
    return predict_batches(loaded.model, iter_batches(chunks, loaded.detector, BatchConfig()))


def test_pyfunc_predicts_what_evaluation_predicts(pyfunc, raw, expected):
    predicted = pyfunc.predict(raw[1])
    assert expected["azimuth"].nunique() == 40, "the model must tell events apart"
    pd.testing.assert_frame_equal(predicted, expected, rtol=0, atol=1e-6)


def test_pyfunc_applies_the_map_of_kappa_once(pyfunc, raw, saved_model):
    loaded = load_model(open_store(), saved_model)
    loaded.model.kappa_map = None
    chunks = read_raw_events(open_store(), raw[0], folder="train", detector=loaded.detector)
    batches = iter_batches(chunks, loaded.detector, BatchConfig())
    own = predict_batches(loaded.model, batches)
    np.testing.assert_allclose(pyfunc.predict(raw[1])["kappa"], own["kappa"] * np.exp(-0.7), 1e-5)


def test_pyfunc_takes_pulses_in_any_order(pyfunc, raw, expected):
    shuffled = raw[1].sample(frac=1.0, random_state=1)
    predicted = pyfunc.predict(shuffled)
    assert predicted["event_id"].tolist() == shuffled["event_id"].drop_duplicates().tolist()
    in_order = predicted.sort_values("event_id", ignore_index=True)
    wanted = expected.sort_values("event_id", ignore_index=True)
    pd.testing.assert_frame_equal(in_order, wanted, rtol=0, atol=1e-5)


def test_pyfunc_keeps_the_row_of_an_event_without_valid_pulses(pyfunc):
    pulses = input_example()
    pulses.loc[pulses["event_id"] == 1, "charge"] = np.nan
    predicted = pyfunc.predict(pulses)
    assert predicted["event_id"].tolist() == [1, 2]
    assert predicted.loc[0, ["azimuth", "zenith", "kappa"]].isna().all()
    alone = pyfunc.predict(pulses[pulses["event_id"] == 2])
    assert predicted.loc[1].tolist() == pytest.approx(alone.loc[0].tolist())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda pulses: pulses.astype({"charge": str}), "raw column charge has the wrong type"),
        (lambda pulses: pulses.assign(time=pulses["time"] + 0.5), "time is not in whole nanosec"),
        (
            lambda pulses: pulses.assign(event_id=pulses["event_id"] + 0.5),
            r"event_id is not a whole number \[model input, row 0\]: found 1\.5",
        ),
        (lambda pulses: pulses.assign(event_id=2.0**53), "event_id is not a whole number"),
        (lambda pulses: pulses.assign(sensor_id=20.25), "sensor_id is not a whole number"),
        (lambda pulses: pulses.assign(auxiliary=0.5), "auxiliary is not a whole number"),
        (lambda pulses: pulses.assign(auxiliary=2), "raw column auxiliary is not a flag"),
    ],
)
def test_pyfunc_refuses_what_it_would_have_to_change(pyfunc, change, message):
    with pytest.raises(RawDataError, match=message) as caught:
        pyfunc.predict(change(input_example()))
    assert "\n" not in str(caught.value)


def test_pyfunc_refuses_a_missing_column(pyfunc):
    with pytest.raises(mlflow.MlflowException, match=r"missing inputs \['time'\]"):
        pyfunc.predict(input_example().drop(columns="time"))


@pytest.mark.parametrize(
    "kinds",
    [
        {"event_id": float, "sensor_id": float, "time": float, "auxiliary": float},
        {"event_id": np.float32, "sensor_id": np.int16, "charge": np.float32, "auxiliary": int},
        {"event_id": "Int64", "sensor_id": np.uint16, "auxiliary": np.int8},
        {"charge": object, "auxiliary": object, "event_id": object},
    ],
)
def test_pyfunc_takes_other_types_of_the_same_values(pyfunc, kinds):
    expected = pyfunc.predict(input_example())
    predicted = pyfunc.predict(input_example().astype(kinds))
    assert predicted["event_id"].dtype == np.int64
    pd.testing.assert_frame_equal(predicted, expected, rtol=0, atol=1e-6)


def test_event_ids_of_64_bits_stay_exact(pyfunc):
    pulses = input_example()
    pulses["event_id"] += 2**62
    assert pyfunc.predict(pulses)["event_id"].tolist() == [2**62 + 1, 2**62 + 2]


def test_package_holds_no_pickle_and_pins_what_it_needs(package):
    names = {path.name for path in package.rglob("*") if path.is_file()}
    assert not {name for name in names if name.endswith((".pkl", ".pickle", ".pt", ".pth"))}
    assert {"weights.safetensors", "model.json", "geometry.csv", "pyfunc_model.py"} <= names
    pinned = (package / "requirements.txt").read_text().split()
    assert pinned == requirements()
    assert all("==" in line and "+" not in line for line in pinned)


NOT_SERVED = ("machines", "steps", "tracking", "training", "local_services", "resources", "cli.py")


def test_package_ships_the_code_that_prediction_imports_and_no_other(package):
    shipped = package / "code" / "iceaggr"
    assert not [name for name in NOT_SERVED if (shipped / name).exists()]
    assert {path.suffix for path in shipped.rglob("*") if path.is_file()} == {".py"}
    pinned = {line.partition("==")[0] for line in requirements()}
    assert {"mlflow", "numpy", "pandas", "pyarrow", "pydantic", "pyyaml", "torch"} <= pinned
    assert not {"jinja2", "matplotlib", "typer", "kfp", "kubernetes"} & pinned


@pytest.mark.integration  # a process of its own takes seconds
def test_packed_model_predicts_where_iceaggr_is_only_what_it_ships(package):
    code = (
        "import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f)];"
        "sys.path = [p for p in sys.path if not p.endswith('/src')];"
        "import importlib.util; assert importlib.util.find_spec('iceaggr') is None;"
        "import mlflow; model = mlflow.pyfunc.load_model(sys.argv[1]);"
        "print(len(model.predict(model.input_example)));"
        "print(*{m.__file__ for n, m in sys.modules.items() if n.split('.')[0] == 'iceaggr'})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(package)],
        capture_output=True,
        text=True,
        check=True,
        cwd=package,
    )
    n_events, files = done.stdout.splitlines()[-2:]
    assert n_events == "2"
    loaded = set(files.split())
    assert all(file.startswith(str(package / "code" / "iceaggr")) for file in loaded)
    shipped = {str(path) for path in (package / "code" / "iceaggr").rglob("*.py")}
    assert len(shipped - loaded) <= 3, "what is imported late, if ever"


def test_model_without_its_configuration_is_not_packed(saved_model, tmp_path):
    bundle = fetch_bundle(open_store(), saved_model, tmp_path / "model")
    edit_sealed(bundle / DOCUMENT, lambda document: document.update(facts={}))
    with pytest.raises(TrackingError, match="does not say how its events were batched"):
        build_package(bundle, tmp_path / "packed", {"run_id": "0" * 32})


def test_bundle_is_fetched_whole(saved_model, tmp_path):
    bundle = fetch_bundle(open_store(), saved_model, tmp_path / "model")
    for path in file_path(saved_model).iterdir():
        assert (bundle / path.name).read_bytes() == path.read_bytes()


def post(uri, pulses):
    body = json.dumps({"dataframe_split": json.loads(pulses.to_json(orient="split", index=False))})
    request = urllib.request.Request(
        f"{uri}/invocations", body.encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return pd.DataFrame(json.loads(answer.read())["predictions"])
