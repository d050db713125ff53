import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest
import requests

from iceaggr import patience
from iceaggr.errors import TrackingError
from iceaggr.local_services.processes import choose_ports
from iceaggr.models.bundle import DOCUMENT, load_model
from iceaggr.patience import may_pass
from iceaggr.storage import open_store
from iceaggr.storage.uris import file_path
from iceaggr.tracking import connection
from iceaggr.tracking import registry as promotion_lock
from iceaggr.tracking.model_package import input_example
from iceaggr.tracking.registry import ModelRegistry, PromotionLock, RegisteredModel
from iceaggr.tracking.run import open_tracker
from tests.models.sealing import edit_sealed
from tests.tracking.outage import Door

pytestmark = pytest.mark.integration


@pytest.fixture
def registry(mlflow_service):
    return ModelRegistry()


@pytest.fixture
def name():
    return f"model-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def run_id(mlflow_service):
    with open_tracker("", "registry tests", uuid.uuid4().hex, "a run", "promote") as tracker:
        return tracker.run_id


@pytest.fixture
def versions(registry, name):
    """Three versions of a model, as rows of the registry only: quick to make."""
    client = registry._client
    client.create_registered_model(name)
    made = [client.create_model_version(name, "s3://iceaggr/nowhere") for _ in range(3)]
    return [RegisteredModel(name, str(version.version), "") for version in made]


def promote(registry, model, expected):
    registry.set_champion(model, expected, {"verdict": "promoted"})


def test_registered_model_is_fetched_and_served(registry, name, run_id, saved_model, tmp_path):
    store = open_store()
    model = registry.register(store, saved_model, name, run_id, {"data_digest": "abc"})
    assert (model.version, model.run_id, model.tags["data_digest"]) == ("1", run_id, "abc")
    assert registry.register(store, saved_model, name, run_id, {}) == model  # a retry
    assert registry.fetch(f"models:/{name}@challenger", tmp_path / "a")
    promote(registry, model, None)
    folder = registry.fetch(f"models:/{name}@champion", tmp_path / "b")
    assert load_model(store, folder).facts == load_model(store, saved_model).facts
    for path in file_path(saved_model).iterdir():
        assert (file_path(folder) / path.name).read_bytes() == path.read_bytes()
    _check_serving(f"models:/{name}@champion", saved_model)


def _check_serving(model_uri, saved_model):
    """Serve the model in a process of its own and compare with a prediction in this one."""
    from tests.tracking.test_pyfunc_model import post

    port = choose_ports({"model": 0})["model"]
    options = ["-m", model_uri, "-p", str(port), "--env-manager", "local", "--workers", "1"]
    path = f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}"  # for uvicorn
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "models", "serve", *options],
        start_new_session=True,
        env={**os.environ, "PATH": path},
    )
    uri = f"http://127.0.0.1:{port}"
    try:
        _wait_for(f"{uri}/ping", server)
        served = post(uri, input_example())
        # the numbers that JSON makes of them
        floats = input_example().astype({"event_id": float, "time": float, "auxiliary": int})
        pd.testing.assert_frame_equal(post(uri, floats), served)
        for change in ({"time": 9_800.5}, {"event_id": 1.5}, {"auxiliary": 2}):
            with pytest.raises(urllib.error.HTTPError) as caught:
                post(uri, input_example().assign(**change))
            assert next(iter(change)) in caught.value.read().decode()
        with pytest.raises(urllib.error.HTTPError, match="400"):
            post(uri, input_example().drop(columns="charge"))
    finally:
        os.killpg(server.pid, 15)
        server.wait(timeout=120)
    pd.testing.assert_frame_equal(served, _predicted_here(saved_model), atol=1e-6)


def _wait_for(uri, server):
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(uri, timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError("the model server did not come up")


def _predicted_here(saved_model):
    from iceaggr.tracking.pyfunc_model import RawPulseModel

    model = RawPulseModel()
    context = type("Context", (), {"artifacts": {"model": str(file_path(saved_model))}})
    model.load_context(context)
    return model.predict(context, input_example())


def test_champion_is_none_before_the_first_promotion(registry, name, versions):
    assert registry.champion(name) is None
    assert registry.champion("no such model") is None


def test_promotion_records_verdict_and_predecessor(registry, name, versions):
    first, second, _ = versions
    promote(registry, first, None)
    registry.set_champion(second, first, {"verdict": "promoted", "margin_deg": "1.5"})
    champion = registry.champion(name)
    assert champion.version == second.version
    assert champion.tags == {"verdict": "promoted", "margin_deg": "1.5", "previous_champion": "1"}
    promote(registry, second, first)  # a retry of the same promotion changes nothing
    assert registry.champion(name) == champion


def test_promotion_is_refused_when_the_champion_changed(registry, name, versions):
    first, second, third = versions
    promote(registry, first, None)
    promote(registry, second, first)
    with pytest.raises(
        TrackingError, match=r"champion changed.*found version 2, expected vers.* 1"
    ):
        promote(registry, third, first)
    assert registry.champion(name).version == second.version
    assert registry.version(name, third.version).tags == {}


def test_concurrent_promotions_have_one_winner(mlflow_service, name, versions):
    def attempt(model):
        try:
            promote(ModelRegistry(), model, None)
        except TrackingError as error:
            return error.what
        return "won"

    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(attempt, versions))
    lost = "the champion changed while the decision was made"
    assert sorted(results) == sorted(["won", lost, lost])
    champion = ModelRegistry().champion(name)
    assert champion.version == versions[results.index("won")].version


def test_registry_waits_for_a_server_that_comes_back(mlflow_service, name, versions, monkeypatch):
    door = Door(mlflow_service.mlflow_uri)
    door.open()
    registry = ModelRegistry(door.uri)
    promote(registry, versions[0], None)
    door.shut()
    back = threading.Timer(1.0, door.open)
    back.start()
    assert registry.champion(name).version == versions[0].version
    back.join()
    monkeypatch.setattr(connection, "PATIENCE_S", 0.2)
    door.shut()
    with pytest.raises(TrackingError, match=r"cannot look up the champion \[model-"):
        registry.champion(name)


def test_registry_of_a_pod_waits_as_long_as_a_training(mlflow_service, name, versions, monkeypatch):
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setattr(connection, "PATIENCE_S", 0.1)
    monkeypatch.setattr(patience, "FIRST_CONTACT_S", 0.1)
    monkeypatch.setattr(patience, "AWAY_S", 60.0)
    door = Door(mlflow_service.mlflow_uri)
    began = time.monotonic()
    back = threading.Timer(3.0, door.open)
    back.start()
    registry = ModelRegistry(door.uri)
    assert time.monotonic() - began > 2.5
    door.shut()
    back = threading.Timer(3.0, door.open)
    back.start()
    assert registry.champion(name) is None
    back.join()
    door.shut()
    monkeypatch.setattr(patience, "AWAY_S", 0.5)
    with pytest.raises(TrackingError, match="cannot look up the champion"):
        registry.champion(name)


def test_rollback_returns_to_the_previous_champion_once_for_each(registry, name, versions):
    first, second, third = versions
    for model, expected in [(first, None), (second, first), (third, second)]:
        promote(registry, model, expected)
    assert registry.rollback(name).version == second.version
    assert registry.rollback(name).version == first.version
    assert registry.champion(name).version == first.version
    assert registry.version(name, third.version).tags["rolled_back"] == "to version 2"
    with pytest.raises(TrackingError, match=r"no previous champion.*found champion version 1"):
        registry.rollback(name)


@pytest.fixture
def three_champions(registry, name, versions):
    """Three versions that had the title one after the other."""
    for model, expected in zip(versions, [None, *versions], strict=False):
        promote(registry, model, expected)
    return versions


def lose_first_answer(monkeypatch, owner, method):
    """Let a real call succeed, and its first answer get lost on the way; count the calls."""
    real, calls = getattr(owner, method), []

    def losing(*arguments, **options):
        calls.append(arguments)
        answer = real(*arguments, **options)
        if len(calls) == 1:
            raise requests.ConnectionError("Remote end closed connection without response")
        return answer

    monkeypatch.setattr(owner, method, losing)
    return calls


@pytest.mark.parametrize(
    ("of_lock", "method"),
    [
        (False, "set_registered_model_alias"),
        (False, "set_model_version_tag"),
        (True, "release"),
    ],
)
def test_rollback_goes_back_by_one_when_an_answer_is_lost(
    registry, name, three_champions, monkeypatch, of_lock, method
):
    _, second, third = three_champions
    owner = PromotionLock if of_lock else registry._client
    calls = lose_first_answer(monkeypatch, owner, method)
    assert registry.rollback(name).version == second.version
    assert len(calls) >= 2
    assert registry.champion(name).version == second.version
    assert registry.version(name, third.version).tags["rolled_back"] == "to version 2"
    assert "rolled_back" not in registry.version(name, second.version).tags


def test_rollback_is_refused_when_the_champion_changed_meanwhile(registry, name, three_champions):
    first, second, third = three_champions
    previous, present = (
        registry.version(name, first.version),
        registry.version(name, second.version),
    )
    with pytest.raises(
        TrackingError, match=r"changed while it was rolled back.*found version 3, expected vers.* 2"
    ):
        registry._give_title_back(present, previous)
    assert registry.champion(name).version == third.version


def test_lock_of_a_dead_promotion_is_broken_by_one_only(registry, name, monkeypatch):
    client = registry._client
    dead = PromotionLock(client, name)
    dead.acquire(within_s=1)
    with pytest.raises(TrackingError, match="another promotion of this model does not end"):
        PromotionLock(client, name).acquire(within_s=0.1)
    monkeypatch.setattr(promotion_lock, "LEASE_S", 0.0)
    heir = PromotionLock(client, name)
    heir.acquire(within_s=60)
    heir.assert_held()
    with pytest.raises(TrackingError, match="lost its lock"):
        dead.assert_held()
    dead.release()  # must not release the heir's
    heir.assert_held()
    heir.release()


def test_failed_packing_registers_nothing(registry, name, run_id, saved_model, tmp_path):
    for path in file_path(saved_model).iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    edit_sealed(tmp_path / DOCUMENT, lambda document: document.update(facts={}))
    with pytest.raises(TrackingError, match="cannot predict its own example"):
        registry.register(open_store(), tmp_path.as_uri(), name, run_id, {})
    with pytest.raises(TrackingError, match="cannot fetch the model"):
        registry.fetch(f"models:/{name}/1", tmp_path / "fetched")


@pytest.mark.parametrize("uri", ["models:/only-a-name", "models:/name/latest", "models:/@champion"])
def test_uri_that_names_no_version_is_explained(registry, uri, tmp_path):
    with pytest.raises(TrackingError, match=r"models:/name@champion|cannot fetch the model"):
        registry.fetch(uri, tmp_path)


def test_plain_folder_is_returned_as_it_is(registry, tmp_path):
    assert registry.fetch("s3://bucket/model", tmp_path) == "s3://bucket/model"


def test_champion_whose_files_are_gone_is_told_at_once(
    registry, name, run_id, saved_model, tmp_path
):
    store = open_store()
    model = registry.register(store, saved_model, name, run_id, {})
    promote(registry, model, None)
    before = {item.uri for item in store.list("s3://mlflow/")}
    for uri in before:
        if uri.endswith(f"/artifacts/model/{DOCUMENT}"):
            store.delete(uri)
    with pytest.raises(TrackingError, match="files of the registered model are gone") as told:
        registry.fetch(f"models:/{name}@champion", tmp_path)
    assert DOCUMENT in str(told.value.found)
    assert not may_pass(told.value)
