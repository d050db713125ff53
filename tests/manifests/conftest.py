"""The compiled graph, once for all checks of the manifests."""

import pytest

from launch.submission import compile_text
from pipeline import PIPELINE_NAME, make_pipeline


@pytest.fixture(scope="session")
def compiled():
    return compile_text(make_pipeline(cluster=True), PIPELINE_NAME)
