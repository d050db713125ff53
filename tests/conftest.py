"""Real services for integration tests, started once and only when a test asks for them.

And how hypothesis draws: the same examples each time, so that a change is judged by what it changes
and not by its luck; `make test-all` draws other ones each time.
"""

import numpy as np
import pytest
import torch
from hypothesis import settings

from iceaggr.local_services.services import LocalServices

# no deadline: how long an example takes says more about what else the machine does
settings.register_profile("steady", deadline=None, derandomize=True)
settings.register_profile("exploring", deadline=None)
settings.load_profile("steady")

# two workers start the services at once, beside their tests
READY_WITHIN_S = 300.0


@pytest.fixture(autouse=True)
def known_random_state():
    """Let no test draw what the tests before it left; which those are is the workers' affair."""
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture(scope="session")
def local_services_folder(tmp_path_factory):
    """The folder in which the services keep logs, database and objects."""
    return tmp_path_factory.mktemp("services")


@pytest.fixture(scope="session")
def local_services(local_services_folder):
    """A running object store and MLflow server; their addresses, without touching os.environ."""
    with LocalServices(local_services_folder, READY_WITHIN_S) as addresses:
        yield addresses


@pytest.fixture
def object_store_service(local_services, monkeypatch):
    """The addresses of the services, with the environment set up for `open_store`."""
    for name, value in local_services.env.items():
        monkeypatch.setenv(name, value)
    return local_services


@pytest.fixture
def mlflow_service(object_store_service):
    """The same addresses; MLFLOW_TRACKING_URI is set, too."""
    return object_store_service


def pytest_collection_modifyitems(items):
    """Start the longest test first, so that it does not run alone at the end."""
    items.sort(key=lambda item: "test_end_to_end" not in item.nodeid)
