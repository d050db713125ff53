"""MLflow's files where the object store's name means nothing: other namespaces, a laptop.

The server of the `standalone` overlay reaches its store by the name in its manifest, through a
proxy that this process does not use: here the name resolves to nothing, as behind a port-forward.
"""

import socket
import time
import uuid

import pytest

from iceaggr.models.bundle import load_model
from iceaggr.storage import open_store
from iceaggr.tracking.registry import ModelRegistry
from iceaggr.tracking.run import fetch_run_file, open_tracker
from manifests.new_credentials import new_keys
from tests.manifests.object_store_server import object_store_server
from tests.manifests.rendering import find, render
from tests.manifests.test_policies import environment, make_bucket
from tests.manifests.tracking_server import tracking_server
from tests.tracking.outage import Door

pytestmark = pytest.mark.integration


def endpoint_of_the_manifest():
    (container,) = find(render("standalone"), "Deployment", "mlflow")["spec"]["template"]["spec"][
        "containers"
    ]
    values = {variable["name"]: variable.get("value") for variable in container["env"]}
    return values["AWS_ENDPOINT_URL"]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of the tracking server; the one way to its store is its own proxy."""
    keys, folder = new_keys(), tmp_path_factory.mktemp("apart")
    with object_store_server(folder, keys) as store_url:
        admin = open_store(environment(store_url, keys["admin"]))
        make_bucket(admin, "mlflow", time.monotonic() + 60)
        way = Door(store_url)
        way.open()
        own = environment(endpoint_of_the_manifest(), keys["tracking"])
        proxy = {"HTTP_PROXY": way.uri, "http_proxy": way.uri, "NO_PROXY": "", "no_proxy": ""}
        with tracking_server(folder, own | proxy) as url:
            yield url
        way.shut()


@pytest.fixture
def here(server, monkeypatch):
    """A client that knows the tracking server and nothing else."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "MLFLOW_S3_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    return server


@pytest.fixture
def run(here):
    with open_tracker("", "apart", uuid.uuid4().hex, "a run apart", "promote") as tracker:
        tracker.log_text("opening angles", "evaluation/methods.csv")
    return tracker.run_id


def test_name_of_the_store_means_nothing_here():
    with pytest.raises(socket.gaierror):
        socket.getaddrinfo(endpoint_of_the_manifest().split("/")[2].split(":")[0], 8333)


def test_champion_is_fetched_where_its_store_cannot_be_reached(run, saved_model, tmp_path):
    registry, store = ModelRegistry(), open_store()
    model = registry.register(store, saved_model, "apart", run, {})
    registry.set_champion(model, None, {"verdict": "promoted"})
    folder = registry.fetch("models:/apart@champion", tmp_path)
    assert load_model(store, folder).digest == load_model(store, saved_model).digest


def test_file_of_a_run_is_fetched_where_its_store_cannot_be_reached(run, tmp_path):
    found = fetch_run_file(run, "evaluation/methods.csv", tmp_path)
    assert found.path.read_text() == "opening angles"


def test_endpoint_is_one_that_every_namespace_resolves():
    """For clients that ask the server for addresses: plain MLflow in a pod of another namespace."""
    host = endpoint_of_the_manifest().split("/")[2].split(":")[0]
    assert host.endswith(".iceaggr"), "a name without its namespace resolves in that one only"
