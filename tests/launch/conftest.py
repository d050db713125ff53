"""A stand-in API for each test, and a small graph to send to it."""

import pytest

from launch.submission import CompiledPipeline
from tests.launch.kfp_stand_in import KfpStandIn

IR = """\
pipelineInfo: {{name: tiny}}
root:
  inputDefinitions:
    parameters:
      n: {{parameterType: NUMBER_INTEGER, defaultValue: {n}}}
---
platforms: {{kubernetes: {{}}}}
"""


@pytest.fixture
def server():
    with KfpStandIn() as running:
        yield running


@pytest.fixture(autouse=True)
def no_context_of_the_user(monkeypatch, tmp_path):
    """KFP's client remembers cookies and namespaces in the home folder."""
    import kfp

    monkeypatch.setattr(kfp.Client, "_LOCAL_KFP_CONTEXT", str(tmp_path / "context.json"))
    for variable in ("KF_PIPELINES_ENDPOINT", "KF_PIPELINES_UI_ENDPOINT"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def compiled():
    return CompiledPipeline("tiny", IR.format(n=1))


@pytest.fixture
def changed():
    return CompiledPipeline("tiny", IR.format(n=2))
