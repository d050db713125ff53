import pytest

from launch.kfp_api import Connection, ServerAwayError, SubmissionError, connect
from launch.submission import RunOrder, start_run, upload_version
from tests.launch.kfp_stand_in import KfpStandIn


@pytest.fixture
def client(server):
    return connect(Connection(server.url))


def forget_once(server, method, field):
    """Let the first answer come from just before somebody else's request."""
    real, answers = getattr(server, method), iter([True])

    def too_early(*arguments):
        answer = real(*arguments)
        if next(answers, False):
            setattr(answer, field, None)
            answer.next_page_token = None
        return answer

    setattr(server, method, too_early)


def test_upload_version_uploads_a_content_once(server, client, compiled):
    first = upload_version(client, compiled)
    again = upload_version(client, compiled)
    assert (first.uploaded, again.uploaded) == (True, False)
    assert first.version_id == again.version_id
    assert len(server.names("POST", "upload_version$")) == 1
    # one version with one name: the run form offers no second of the same content
    assert [v.display_name for v in server.versions] == [first.name]


def test_upload_version_finds_a_version_on_a_later_page(server, client, compiled, changed):
    first = upload_version(client, compiled)
    server.page_size = 1
    upload_version(client, changed)
    assert upload_version(client, compiled).version_id == first.version_id


def test_upload_version_adds_a_version_when_the_content_changes(server, client, compiled, changed):
    versions = [upload_version(client, item) for item in (compiled, changed)]
    assert versions[0].pipeline_id == versions[1].pipeline_id
    assert versions[0].name != versions[1].name
    assert len(server.names("POST", "pipelines$")) == 1


def test_upload_version_takes_the_version_of_somebody_who_was_faster(server, client, compiled):
    upload_version(client, compiled)
    forget_once(server, "list_versions", "pipeline_versions")
    assert not upload_version(client, compiled).uploaded
    assert len(server.names("POST", "upload_version$")) == 2


def test_upload_version_joins_the_pipeline_of_somebody_who_was_faster(
    server, client, compiled, changed
):
    upload_version(client, compiled)
    forget_once(server, "list_pipelines", "pipelines")
    assert upload_version(client, changed).uploaded
    assert len(server.pipelines) == 1
    assert len(server.names("POST", "pipelines$")) == 2


def test_upload_version_goes_on_after_an_upload_that_failed(server, client, compiled):
    server.fail("POST", ".*/upload_version", 500)
    with pytest.raises(ServerAwayError, match=r"pipeline upload.*HTTP 500"):
        upload_version(client, compiled)
    assert upload_version(client, compiled).uploaded
    assert len(server.pipelines) == 1


def test_upload_version_uploads_into_the_namespace_of_the_user(compiled):
    with KfpStandIn(multi_user=True) as server:
        upload_version(connect(Connection(server.url, namespace="ana")), compiled)
        assert server.pipelines[0].namespace == "ana"


def test_start_run_sends_version_values_and_account(server, client, compiled):
    version = upload_version(client, compiled)
    run_id = start_run(client, RunOrder(version, "nightly", {"n": 3}, "trainer"), "night")
    run = server.runs[0]
    assert (run.run_id, run.display_name) == (run_id, "night")
    assert run.pipeline_version_reference.pipeline_version_id == version.version_id
    assert run.runtime_config.parameters == {"n": 3}
    assert run.service_account == "trainer"
    assert [e.display_name for e in server.experiments] == ["nightly"]


def test_start_run_uses_the_experiment_that_is_there(server, client, compiled):
    version = upload_version(client, compiled)
    for _ in range(2):
        start_run(client, RunOrder(version, "nightly", {}), "night")
    assert len(server.experiments) == 1
    assert len({run.experiment_id for run in server.runs}) == 1


def test_start_run_joins_the_experiment_of_somebody_who_was_faster(server, client, compiled):
    version = upload_version(client, compiled)
    start_run(client, RunOrder(version, "nightly", {}), "night")
    forget_once(server, "list_experiments", "experiments")
    start_run(client, RunOrder(version, "nightly", {}), "night")
    assert len({run.experiment_id for run in server.runs}) == 1
    assert len(server.names("POST", "experiments$")) == 2


def test_start_run_says_that_the_user_may_not(server, client, compiled):
    version = upload_version(client, compiled)
    server.fail("POST", ".*/runs", 403)
    with pytest.raises(SubmissionError, match=r"run creation.*HTTP 403.*Ask for the rights"):
        start_run(client, RunOrder(version, "nightly", {}), "night")


def test_start_run_tells_the_mlflow_plugin_the_experiment(server, client, compiled):
    version = upload_version(client, compiled)
    start_run(client, RunOrder(version, "nightly", {}, tracking_experiment="neutrinos"), "night")
    assert server.runs[0].plugins_input == {"mlflow": {"experiment_name": "neutrinos"}}


def test_start_run_goes_without_the_plugin_when_the_server_refuses_it(server, client, compiled):
    server.refuses_plugins = True
    version = upload_version(client, compiled)
    start_run(client, RunOrder(version, "nightly", {}, tracking_experiment="neutrinos"), "night")
    assert server.runs[0].plugins_input is None
    assert len(server.names("POST", "runs$")) == 2
