import dataclasses
import json
import re
from dataclasses import replace
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

import pipeline
from components.form import EXAMPLE_IMAGE
from iceaggr.cli_options import with_fields_as_options
from launch import commands
from launch.submission import compile_text
from tests.launch.argo_run import ArgoRun
from tests.launch.kfp_stand_in import KfpStandIn
from tests.launch.test_display import SUMMARY
from tests.stand_in import Answer, HttpError, StandIn


@pytest.fixture(scope="module")
def graph():
    """The real graph, compiled once: the commands compile it anew each time otherwise."""
    made = pipeline.make_pipeline(cluster=True)
    compiled = compile_text(made, made.name)
    return replace(compiled, text=compiled.text.replace(EXAMPLE_IMAGE, "registry/iceaggr:7.1.0"))


def finish(server, run, log):
    argo = ArgoRun().step("promote-model", "Succeeded", log=log).end("Succeeded")
    server.workflows[run.run_id] = argo
    run.state = "SUCCEEDED"


@dataclasses.dataclass(frozen=True)
class Pod:
    name: Annotated[str, typer.Option(help="Of the pod")] = ""
    n_cores: Annotated[int, typer.Option("--cores")] = 1


def test_group_of_options_reaches_the_verb_as_its_dataclass():
    seen = []

    @with_fields_as_options
    def verb(loud: Annotated[bool, typer.Option("--loud")] = False, *, pod: Pod) -> None:
        seen.append((pod, loud))

    app = typer.Typer()
    app.command()(verb)
    CliRunner().invoke(app, ["--cores", "4", "--loud"], catch_exceptions=False)
    assert seen == [(Pod("", 4), True)]


@pytest.fixture
def call(monkeypatch, capsys, graph):
    """Run pipeline.py with arguments; returns exit code, stdout, stderr."""
    monkeypatch.setattr("launch.cluster_commands.compile_text", lambda made, name: graph)

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["pipeline.py", *arguments])
        with pytest.raises(SystemExit) as exit_info:
            commands.main(pipeline.make_pipeline)
        captured = capsys.readouterr()
        return exit_info.value.code, captured.out, captured.err

    return run


def test_submit_uploads_starts_and_prints_the_link(server, call):
    code, out, err = call("submit", "--host", server.url, "--set", "raw_uri=s3://b/raw")
    assert (code, err) == (0, "")
    run = server.runs[0]
    assert f"{server.url}/#/runs/details/{run.run_id}" in out
    assert "(uploaded)" in out
    assert run.runtime_config.parameters == {"raw_uri": "s3://b/raw"}


def test_submit_takes_the_address_from_the_environment(server, call, monkeypatch):
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", server.url)
    code, out, _ = call("submit")
    assert code == 0
    assert f"{server.url}/#/runs/details/" in out


def test_submit_links_to_the_address_of_the_ui(server, call, monkeypatch):
    monkeypatch.setenv("KF_PIPELINES_UI_ENDPOINT", "https://kfp.example.org/pipeline/")
    _, out, _ = call("submit", "--host", server.url)
    run_id = server.runs[0].run_id
    assert f"\n         https://kfp.example.org/pipeline/#/runs/details/{run_id}\n" in out
    _, out, _ = call("submit", "--host", server.url, "--ui", "http://127.0.0.1:8080")
    assert f"http://127.0.0.1:8080/#/runs/details/{server.runs[1].run_id}\n" in out


def test_submit_takes_settings_from_a_file(server, call, tmp_path):
    path = tmp_path / "parameters.env"
    path.write_text("raw_uri=s3://b/raw\ntrain_nodes=2\n")
    assert call("submit", "--host", server.url, "--set-file", str(path))[0] == 0
    sent = server.runs[0].runtime_config.parameters
    assert sent == {"raw_uri": "s3://b/raw", "train_nodes": "2"}


def test_submit_refuses_the_image_of_the_example_registry(server, call, monkeypatch, graph):
    example = replace(graph, text=graph.text.replace("registry/iceaggr:7.1.0", EXAMPLE_IMAGE))
    monkeypatch.setattr("launch.cluster_commands.compile_text", lambda made, name: example)
    code, _, err = call("submit", "--host", server.url)
    assert code == 1
    assert "the image of the steps is not set [ICEAGGR_IMAGE]" in err
    assert server.requests == []


def test_submit_waits_for_the_end(server, call):
    server.states = ["SUCCEEDED"]
    code, out, _ = call("submit", "--host", server.url, "--wait")
    assert code == 0
    assert "the run succeeded; its figures: http" in out


def test_submit_fails_when_the_run_fails(server, call):
    server.states = ["FAILED"]
    code, _, err = call("submit", "--host", server.url, "--wait")
    assert code == 1
    assert err.startswith("error: the run failed")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "raw_url=x"], "unknown parameter [--set raw_url]"),
        (["--set", "train_gpu_typ=x"], "Did you mean train_gpu_type?"),
        (["--ui", "http://a:b@kfp.example.org"], "address holds a user or a password [--ui or"),
        (["--set", "train_gpu_count=three"], "train_gpu_count has a value that is not allowed"),
        (["--config", "absent.yaml"], "configuration file not found [absent.yaml]"),
        (["--set", "work_uri="], "invalid value [--set work_uri=]"),
        (["--experiment", ""], "invalid name [--experiment]"),
        (["--set", "experiment_name="], "invalid name [--set experiment_name=]"),
        (["--service-account", "bad name!"], "invalid name of a service account"),
        (["--namespace", "Bad_NS!"], "invalid name of a namespace [--namespace]"),
        (["--host", "kfp.example.org:8080"], "Write http:// or https:// before it"),
        (["--token-file", "/dev/null"], "file not found [--token-file /dev/null]"),
        (["--token-file", "absent"], "file not found [--token-file absent]"),
        (["--run-name", "a/b"], "invalid name of a run [--run-name]"),
        (["--run-name", " "], "invalid name [--run-name]"),
    ],
)
def test_submit_sends_nothing_when_the_request_is_wrong(server, call, arguments, message):
    code, out, err = call("submit", "--host", server.url, *arguments)
    assert (code, out) == (1, "")
    assert message in err
    assert err.count("\n") == 1
    assert server.requests == []


def test_submit_names_the_run_by_what_tells_it_apart(server, call):
    call("submit", "--host", server.url, "--set", "raw_uri=s3://b/month 03/")
    call("submit", "--host", server.url, "--set", "train_start_from=champion")
    call("submit", "--host", server.url, "--run-name", "Tuesday's idea")
    first, second, third = (run.display_name for run in server.runs)
    assert re.fullmatch(r"laptop-month-03-scratch-\d{4}-\d{6}", first)
    assert re.fullmatch(r"laptop-raw-champion-\d{4}-\d{6}", second)
    assert third == "Tuesday's idea"


@pytest.mark.parametrize("verb", [["submit"], ["schedule", "--cron", "0 0 3 * * 0"]])
def test_submit_and_schedule_refuse_a_server_that_is_too_old(server, call, verb):
    server.health["tag_name"] = "2.15.0"
    code, out, err = call(*verb, "--host", server.url)
    assert (code, out) == (1, "")
    assert "Kubeflow Pipelines is too old for the graph" in err
    assert not server.names("POST")
    code, _, err = call(*verb, "--host", server.url, "--accept-older-kfp")
    assert code == 0
    assert err.startswith("warning: Kubeflow Pipelines 2.15.0 is older than 2.17")


@pytest.mark.parametrize("values", [[], ["--set", "experiment_name=neutrinos"]])
def test_submit_and_schedule_tell_the_mlflow_plugin_the_experiment(server, call, values):
    call("submit", "--host", server.url, *values)
    call("schedule", "--cron", "0 0 3 * * 0", "--host", server.url, *values)
    name = "neutrinos" if values else "iceaggr"
    for made in (server.runs[0], server.schedules[0]):
        assert made.plugins_input == {"mlflow": {"experiment_name": name}}


def test_submit_prints_the_figures_of_a_run_that_succeeded(server, call):
    log = f"summary.json: {json.dumps(SUMMARY)}"
    server.frames = [lambda run: finish(server, run, log)]
    code, out, _ = call("submit", "--host", server.url, "--wait")
    assert code == 0
    assert "verdict  not promoted: [reason]\n" in out
    assert "promote-model        done" in out


def test_follow_tells_how_a_run_ended_that_was_submitted_before(server, call):
    call("submit", "--host", server.url)
    finish(server, server.runs[0], "no figures")
    code, out, _ = call("follow", server.runs[0].run_id, "--host", server.url)
    assert code == 0
    assert "the run succeeded; its figures: http" in out


def test_submit_ends_with_another_exit_code_when_the_server_is_lost(server, call, monkeypatch):
    monkeypatch.setattr("launch.following.follow_run.__defaults__", (0.0, 0.05))
    for _ in range(500):
        server.fail("GET", ".*v2beta1/runs/.*", 503)
    code, _, err = call("submit", "--host", server.url, "--wait")
    assert code == 3
    again = f"python pipeline.py follow {server.runs[0].run_id} --host {server.url}"
    assert err.startswith("error: the run goes on")
    assert again in err


def test_submit_says_when_nobody_listens(call):
    code, _, err = call("submit", "--host", "http://127.0.0.1:9")
    assert code == 1
    assert "error: Kubeflow Pipelines cannot be reached [http://127.0.0.1:9]" in err


def test_schedule_creates_lists_replaces_and_deletes(server, call):
    where = ["--host", server.url]
    assert "created: 0 0 3 * * 0" in call("schedule", "--cron", "0 0 3 * * 0", *where)[1]
    assert "unchanged" in call("schedule", "--cron", "0 0 3 * * 0", *where)[1]
    changed = call("schedule", "--cron", "0 0 4 * * 0", "--set", "train_gpu_count=1", *where)[1]
    assert "created: 0 0 4 * * 0\ndeleted  1 of the same name" in changed
    listed = call("schedule", "--list", *where)[1]
    assert "iceaggr-weekly" in listed
    assert "0 0 4 * * 0" in listed
    assert "enabled" in listed
    assert "deleted  1" in call("schedule", "--delete", *where)[1]
    assert server.schedules == []


@pytest.mark.parametrize("verb", [["--delete"], ["--list"], ["--cron", "0 0 3 * * 0"]])
def test_schedule_refuses_an_empty_name_before_anything_is_sent(server, call, verb):
    code, _, err = call("schedule", *verb, "--name", "", "--host", server.url)
    assert (code, server.requests) == (1, [])
    assert err.startswith("error: invalid name [--name]: found ''")


def test_schedule_list_shows_one_name_alone_if_asked(server, call):
    where = ["--host", server.url]
    for name in ("foo", "bar"):
        call("schedule", "--cron", "0 0 3 * * 0", "--name", name, *where)
    named = call("schedule", "--list", "--name", "foo", *where)[1]
    assert ("foo" in named, "bar" in named) == (True, False)
    assert "bar" in call("schedule", "--list", *where)[1]


def test_submit_refuses_an_image_whose_tag_moves(server, call, monkeypatch, graph):
    moving = replace(graph, text=graph.text.replace("iceaggr:7.1.0", "iceaggr:7.1-latest"))
    monkeypatch.setattr("launch.cluster_commands.compile_text", lambda made, name: moving)
    code, _, err = call("submit", "--host", server.url)
    assert (code, server.requests) == (1, [])
    assert "the tag of the image names no fixed version [ICEAGGR_IMAGE]" in err


def test_submit_names_the_variable_when_no_address_is_given(call, monkeypatch):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    code, _, err = call("submit")
    assert code == 1
    assert "no address of Kubeflow Pipelines [--host or KF_PIPELINES_ENDPOINT]" in err


def test_submit_refuses_an_empty_token_file(server, call, tmp_path):
    (tmp_path / "token").write_text("\n")
    code, _, err = call("submit", "--host", server.url, "--token-file", str(tmp_path / "token"))
    assert code == 1
    assert "file is empty [--token-file" in err
    assert server.requests == []


def test_schedule_list_says_when_there_is_none(server, call):
    code, out, _ = call("schedule", "--list", "--host", server.url)
    assert (code, out) == (0, "no schedules\n")


def test_schedule_refuses_a_bad_cron_expression_before_anything_is_sent(server, call):
    code, _, err = call("schedule", "--cron", "0 3 * * 0", "--host", server.url)
    assert code == 1
    assert "found 5 fields, expected 6" in err
    assert server.requests == []


def test_every_dropdown_default_reaches_the_server_as_text(server, call):
    call("submit", "--host", server.url, "--set", "train_gpu_count=2")
    sent = json.loads(json.dumps(server.runs[0].runtime_config.parameters))
    assert sent == {"train_gpu_count": "2"}


def test_submit_works_on_a_server_with_several_users(call):
    with KfpStandIn(multi_user=True) as server:
        code, _, err = call("submit", "--host", server.url)
        assert code == 1
        assert "--namespace" in err
        assert call("submit", "--host", server.url, "--namespace", "ana")[0] == 0
        assert server.experiments[0].namespace == "ana"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            [],
            "schedule needs exactly one action: found none, expected one of --cron, --list",
        ),
        (["--list", "--delete"], "schedule needs exactly one action: found --list and --delete"),
        (
            ["--list", "--cron", "0 0 3 * * 0"],
            "schedule needs exactly one action: found --cron and --list",
        ),
        (
            ["--cron", "", "--delete"],
            "schedule needs exactly one action: found --cron and --delete",
        ),
        (["--cron", ""], "bad cron expression [--cron '']: found 0 fields"),
        (["--list", "--set", "train_nodes=2"], "only a new schedule takes settings [--list]"),
        (["--delete", "--config", "c.yaml"], "only a new schedule takes settings [--delete]"),
    ],
)
def test_schedule_takes_nothing_that_it_would_not_use(server, call, arguments, message):
    code, out, err = call("schedule", *arguments, "--host", server.url)
    assert (code, out) == (1, "")
    assert message in err
    assert server.requests == []


class Kubernetes(StandIn):
    """A cluster that has the training runtimes that it is told of."""

    def __init__(self, *runtimes, refusal=404):
        super().__init__()
        self.runtimes, self.refusal = runtimes, refusal

    def answer(self, request):
        folder = "/apis/trainer.kubeflow.org/v1alpha1/clustertrainingruntimes/"
        assert request.path.startswith(folder)
        if request.path.removeprefix(folder) in self.runtimes:
            return Answer.of({"kind": "ClusterTrainingRuntime"})
        raise HttpError(self.refusal, "not found")


@pytest.fixture
def kubeconfig(monkeypatch, tmp_path):
    """Let kubectl's settings name a cluster; '' = there are none."""
    path = tmp_path / "kubeconfig"
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(path))

    def write(url):
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "laboratory",
            "contexts": [{"name": "laboratory", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": {"server": url}}],
            "users": [{"name": "u", "user": {"token": "t"}}],
        }
        path.write_text(json.dumps(document), encoding="utf-8")

    return write


def test_submit_says_when_several_machines_lack_their_runtime(server, call, kubeconfig):
    arguments = ("submit", "--host", server.url, "--set")
    with Kubernetes() as cluster:
        kubeconfig(cluster.url)
        code, out, _ = call(*arguments, "train_nodes=2")
        assert code == 0
        (line,) = [line for line in out.splitlines() if line.startswith("warning: ")]
        assert "train_nodes is 2" in line
        assert "laboratory has no ClusterTrainingRuntime iceaggr" in line
        assert "warning" not in call(*arguments, "train_nodes=1")[1]
        cron = ("schedule", "--host", server.url, "--cron", "0 0 3 * * 0", "--set", "train_nodes=4")
        assert "train_nodes is 4" in call(*cron)[1]


def test_submit_is_silent_where_the_runtime_is_there_or_nothing_can_be_known(
    server, call, kubeconfig
):
    arguments = ("submit", "--host", server.url, "--set", "train_nodes=2")
    code, out, _ = call(*arguments)
    assert (code, "warning" in out) == (0, False)
    for cluster in (Kubernetes("iceaggr"), Kubernetes(refusal=403)):
        with cluster:
            kubeconfig(cluster.url)
            code, out, _ = call(*arguments)
        assert (code, "warning" in out) == (0, False)
        assert cluster.names("GET", "/clustertrainingruntimes/iceaggr$")
    # now nobody listens there
    assert "warning" not in call(*arguments)[1]
