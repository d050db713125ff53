"""What kubectl renders is valid, restricted and says what the pipeline expects."""

import re
import subprocess
import sys

import pytest
import yaml
from kubeflow_trainer_api.models import TrainerV1alpha1ClusterTrainingRuntime

from iceaggr.machines import supervision
from iceaggr.service_settings import (
    OBJECT_STORE_ENVIRONMENT,
    OBJECT_STORE_SECRET,
    SETTINGS_CONFIG_MAP,
    SETTINGS_ENVIRONMENT,
)
from manifests.check import main, problems
from manifests.new_credentials import new_keys, secret_objects
from tests.manifests.rendering import MANIFESTS, OVERLAYS, find, render


@pytest.mark.parametrize("trainer", [False, True])
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlay_has_no_problem(overlay, trainer):
    documents = render(overlay, trainer)
    assert [problem for document in documents for problem in problems(document)] == []


# everything that `kubectl delete -f` takes: nothing in it holds data of its own
OF_RUNS = [
    "ConfigMap/iceaggr-schedule",
    "ConfigMap/iceaggr-schedule-parameters",
    "ConfigMap/iceaggr-settings",
    "CronJob/iceaggr-schedule",
    "NetworkPolicy/iceaggr-egress",
    "NetworkPolicy/iceaggr-ingress",
    "ResourceQuota/iceaggr-gpus",
    "Role/iceaggr-runner",
    "Role/iceaggr-scheduler",
    "RoleBinding/iceaggr-runner",
    "RoleBinding/iceaggr-scheduler",
    "ServiceAccount/iceaggr-runner",
    "ServiceAccount/iceaggr-scheduler",
]
OF_SERVICES = [
    "Deployment/mlflow",
    "Job/buckets",
    "NetworkPolicy/buckets",
    "NetworkPolicy/deny-all",
    "NetworkPolicy/mlflow",
    "NetworkPolicy/mlflow-database",
    "NetworkPolicy/names",
    "NetworkPolicy/object-store",
    "Service/mlflow",
    "Service/mlflow-database",
    "Service/object-store",
    "ServiceAccount/iceaggr-services",
    "StatefulSet/mlflow-database",
    "StatefulSet/object-store",
]
TAKEN = {
    "existing": {"kubeflow-user-example-com": OF_RUNS},
    "standalone": {
        "kubeflow": sorted([*OF_RUNS, "NetworkPolicy/iceaggr-services-egress"]),
        "iceaggr": OF_SERVICES,
    },
}


@pytest.mark.parametrize("trainer", [False, True])
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_deleting_a_rendered_file_takes_this_and_no_more(overlay, trainer):
    taken = {}
    for document in render(overlay, trainer):
        name = f"{document['kind']}/{document['metadata']['name']}"
        taken.setdefault(document["metadata"].get("namespace", ""), []).append(name)
    of_the_cluster = {"": ["ClusterTrainingRuntime/iceaggr"]} if trainer else {}
    assert {space: sorted(names) for space, names in taken.items()} == {
        **TAKEN[overlay],
        **of_the_cluster,
    }


def test_claims_outlive_what_uses_them():
    keepers = [d for d in render("standalone") if d["kind"] == "StatefulSet"]
    assert len(keepers) == 2
    for document in keepers:
        assert document["spec"]["persistentVolumeClaimRetentionPolicy"] == {
            "whenDeleted": "Retain",
            "whenScaled": "Retain",
        }
    # whatever else an operator's own overlay makes of them
    for policy in ({}, {"whenDeleted": "Delete"}, {"whenDeleted": "Retain"}):
        keepers[0]["spec"]["persistentVolumeClaimRetentionPolicy"] = policy
        assert "the data would be deleted" in problems(keepers[0])[0]
    del keepers[0]["spec"]["persistentVolumeClaimRetentionPolicy"]
    assert "the data would be deleted" in problems(keepers[0])[0]


@pytest.mark.parametrize(
    "document",
    [
        *yaml.safe_load_all((MANIFESTS / "services" / "namespace.yaml").read_text()),
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": "data", "namespace": "iceaggr"},
            "spec": {"accessModes": ["ReadWriteOnce"]},
        },
    ],
)
def test_what_holds_data_is_refused_in_a_rendered_file(document):
    assert "apply it separately" in problems(document)[0]


def test_namespace_that_is_applied_apart_is_the_one_of_the_services():
    (namespace,) = yaml.safe_load_all((MANIFESTS / "services" / "namespace.yaml").read_text())
    assert namespace["kind"] == "Namespace"
    assert namespace["metadata"]["name"] == "iceaggr"
    spaces = {d["metadata"]["namespace"] for d in render("standalone")}
    assert spaces == {"iceaggr", "kubeflow"}


def _pod(document):
    return document["spec"]["template"]["spec"]


def _container(document):
    return _pod(document)["containers"][0]


BREACHES = {
    "unknown field": (lambda d: _pod(d).update(restartPolice="Always"), "restartPolice"),
    "misspelt nested field": (
        lambda d: _container(d)["livenessProbe"]["httpGet"].update(pathh="/"),
        "pathh",
    ),
    "wrong type": (lambda d: d["spec"].update(replicas="1"), "replicas"),
    "no limits": (lambda d: _container(d)["resources"].pop("limits"), r"resources\.limits\.memory"),
    "no cpu request": (
        lambda d: _container(d)["resources"]["requests"].pop("cpu"),
        r"resources\.requests\.cpu",
    ),
    "tag that ends in latest": (
        lambda d: _container(d).update(image="a/b:1.2-latest"),
        "names no fixed version",
    ),
    "no image reference": (
        lambda d: _container(d).update(image="bad image!:1.0"),
        "not an image reference",
    ),
    "tag latest": (lambda d: _container(d).update(image="a/b:latest"), "names no fixed version"),
    "no tag": (lambda d: _container(d).update(image="host:5000/a/b"), "names no fixed version"),
    "tag of a major version": (
        lambda d: _container(d).update(image="postgres:17"),
        "no fixed version",
    ),
    "tag of one number": (lambda d: _container(d).update(image="a/b:1"), "no fixed version"),
    "moving variant": (lambda d: _container(d).update(image="debian:12-slim"), "no fixed version"),
    "half a digest": (lambda d: _container(d).update(image="a/b@sha256:0123"), "no fixed version"),
    "container as root": (
        lambda d: _container(d)["securityContext"].update(runAsUser=0),
        "runs as root",
    ),
    "container that may be root": (
        lambda d: _container(d)["securityContext"].update(runAsNonRoot=False),
        "runs as root",
    ),
    "secret in an argument": (
        lambda d: _container(d)["args"].append("--password=hunter2"),
        "args: looks like a secret",
    ),
    "secret after an option": (
        lambda d: _container(d)["args"].extend(["--api-token", "hunter2"]),
        "args: looks like a secret",
    ),
    "secret in an address": (
        lambda d: _container(d)["env"].append({"name": "DB", "value": "pg://me:hunter2@db/x"}),
        "env DB: looks like a secret",
    ),
    "no pod security": (lambda d: _pod(d).pop("securityContext"), "runAsNonRoot"),
    "root": (lambda d: _pod(d)["securityContext"].update(runAsUser=0), "other than 0"),
    "no container security": (
        lambda d: _container(d).pop("securityContext"),
        "allowPrivilegeEscalation",
    ),
    "capabilities": (
        lambda d: _container(d)["securityContext"].pop("capabilities"),
        "ALL are not dropped",
    ),
    "writable root": (
        lambda d: _container(d)["securityContext"].update(readOnlyRootFilesystem=False),
        "readOnlyRootFilesystem",
    ),
    "no probe": (lambda d: _container(d).pop("livenessProbe"), "no livenessProbe"),
    "token": (
        lambda d: _pod(d).pop("automountServiceAccountToken"),
        "automountServiceAccountToken",
    ),
    "secret in the clear": (
        lambda d: _container(d)["env"].append({"name": "DB_PASSWORD", "value": "hunter2"}),
        "looks like a secret",
    ),
    "disk without limit": (
        lambda d: _pod(d)["volumes"].append({"name": "x", "emptyDir": {}}),
        "volume x: no sizeLimit",
    ),
    "host path": (
        lambda d: _pod(d)["volumes"].append({"name": "x", "hostPath": {"path": "/"}}),
        "volume x: hostPath",
    ),
    "no namespace": (lambda d: d["metadata"].pop("namespace"), "no namespace"),
}


@pytest.mark.parametrize("breach", BREACHES)
def test_problems_names_a_breach(breach):
    change, message = BREACHES[breach]
    server = find(render("standalone"), "Deployment", "mlflow")
    change(server)
    found = problems(server)
    assert re.search(message, "\n".join(found)), found
    assert found[0].startswith("Deployment mlflow: ")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("db-password", "x"),
        ("database", "postgresql://me:hunter2@db/mlflow"),
        ("options", "--verbose --password=hunter2"),
        ("server.conf", "port: 80\nsecret_key: hunter2\n"),
    ],
)
def test_problems_names_a_secret_in_a_config_map(key, value):
    settings = find(render("existing"), "ConfigMap", SETTINGS_CONFIG_MAP)
    settings["data"][key] = value
    assert problems(settings) == [
        f"ConfigMap {SETTINGS_CONFIG_MAP}: data.{key}: looks like a secret in a ConfigMap"
    ]


@pytest.mark.parametrize("image", ["a/b:1.2.3", "a/b:v17.6-bookworm", "a/b@sha256:" + "0" * 64])
def test_problems_accepts_a_version_that_stays(image):
    server = find(render("standalone"), "Deployment", "mlflow")
    _container(server).update(image=image)
    assert problems(server) == []


def test_problems_names_a_breach_inside_a_training_runtime():
    runtime = find(render("existing", trainer=True), "ClusterTrainingRuntime", "iceaggr")
    job = runtime["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]
    job["template"]["spec"]["containers"][0]["comand"] = []
    assert "comand" in problems(runtime)[0]
    runtime = find(render("existing", trainer=True), "ClusterTrainingRuntime", "iceaggr")
    runtime["spec"]["mlPolicy"]["torch"]["nProcPerNode"] = 4
    assert "nProcPerNode" in problems(runtime)[0]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"apiGroups": [""], "resources": ["pods"], "verbs": ["*"]}, "unlimited rights"),
        ({"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}, "every secret"),
    ],
)
def test_problems_names_rights_that_are_too_wide(rule, message):
    role = find(render("existing"), "Role", "iceaggr-runner")
    role["rules"].append(rule)
    assert message in problems(role)[0]


def test_problems_refuses_secrets_and_unknown_kinds():
    secret = secret_objects(new_keys(), "kubeflow")[0]
    assert "made by the operator" in problems(secret)[0]
    unknown = {"apiVersion": "example.org/v1", "kind": "Thing", "metadata": {"name": "x"}}
    assert "Couldn't find schema" in problems(unknown)[0]


def test_check_fails_on_a_file_with_a_problem_and_on_an_empty_one(tmp_path, capsys):
    path = tmp_path / "objects.yaml"
    path.write_text(yaml.safe_dump(find(render("existing"), "ResourceQuota", "iceaggr-gpus")))
    assert main([str(path)]) == 0
    path.write_text(path.read_text().replace("hard:", "hart:"))
    assert main([str(path)]) == 1
    assert "hart" in capsys.readouterr().out
    path.write_text("")
    assert main([str(path)]) == 1


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlay_holds_the_settings_that_the_steps_ask_for(overlay):
    settings = find(render(overlay), "ConfigMap", SETTINGS_CONFIG_MAP)
    assert set(settings["data"]) == set(SETTINGS_ENVIRONMENT)
    assert all(settings["data"].values())


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlay_names_one_image_everywhere(overlay):
    text = yaml.safe_dump(render(overlay))
    ours = set(re.findall(r"\S*/iceaggr:\S+", text))
    assert len(ours) == 1
    job = find(render(overlay), "CronJob", "iceaggr-schedule")["spec"]["jobTemplate"]["spec"]
    variables = {v["name"]: v["value"] for v in _container({"spec": job})["env"]}
    assert {variables["ICEAGGR_IMAGE"]} == ours


def test_new_credentials_makes_each_secret_that_a_manifest_names():
    documents = render("standalone")
    wanted = set()
    for document in documents:
        if document["kind"] in ("Deployment", "StatefulSet", "Job"):
            text = yaml.safe_dump(document)
            space = document["metadata"]["namespace"]
            wanted |= {(space, name) for name in re.findall(r"secretName: (\S+)", text)}
            wanted |= {
                (space, variable["valueFrom"]["secretKeyRef"]["name"])
                for variable in _container(document).get("env", [])
                if "secretKeyRef" in variable.get("valueFrom", {})
            }
    assert len(wanted) == 4
    secrets = secret_objects(new_keys(), "kubeflow")
    made = {(s["metadata"]["namespace"], s["metadata"]["name"]): s for s in secrets}
    assert wanted | {("kubeflow", OBJECT_STORE_SECRET)} <= set(made)
    steps = made["kubeflow", OBJECT_STORE_SECRET]
    assert set(steps["stringData"]) == set(OBJECT_STORE_ENVIRONMENT)


def test_rotated_credentials_leave_the_password_of_the_database_alone():
    command = [sys.executable, "-m", "manifests.new_credentials"]
    made = {}
    for options in ([], ["--rotate"]):
        text = subprocess.run(
            [*command, *options], capture_output=True, text=True, check=True, cwd=MANIFESTS.parent
        ).stdout
        made[len(options)] = {s["metadata"]["name"]: s for s in yaml.safe_load_all(text)}
    assert set(made[0]) - set(made[1]) == {"iceaggr-mlflow-database"}
    assert set(made[1]) < set(made[0])
    for name, secret in made[1].items():
        assert secret["stringData"] != made[0][name]["stringData"]


def test_new_keys_differ_each_time():
    assert new_keys() != new_keys()


def test_training_runtime_keeps_every_field_in_the_models_of_the_trainer_api():
    runtime = find(render("existing", trainer=True), "ClusterTrainingRuntime", "iceaggr")
    model = TrainerV1alpha1ClusterTrainingRuntime.from_dict(runtime)
    assert model.to_dict() == runtime


def test_server_may_start_for_half_an_hour():
    # a database that recovers, migrates or reads a large index is not killed half-way
    servers = [d for d in render("standalone") if d["kind"] in ("Deployment", "StatefulSet")]
    assert len(servers) == 3
    for document in servers:
        probe = _container(document)["startupProbe"]
        assert probe["periodSeconds"] * probe["failureThreshold"] >= 1800
        # Kubernetes' own second is too short on a busy node
        assert all(
            _container(document)[kind].get("timeoutSeconds", 1) >= 5
            for kind in ("startupProbe", "readinessProbe", "livenessProbe")
        )


def test_jobs_have_time_to_pull_the_image():
    documents = render("standalone")
    schedule = find(documents, "CronJob", "iceaggr-schedule")["spec"]["jobTemplate"]["spec"]
    for job in (schedule, find(documents, "Job", "buckets")["spec"]):
        assert job["activeDeadlineSeconds"] >= 1800


def test_training_node_has_time_for_its_last_checkpoint():
    runtime = find(render("existing", trainer=True), "ClusterTrainingRuntime", "iceaggr")
    (job,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    grace_s = job["template"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    # what the processes are given after SIGTERM, and Python's own end
    assert grace_s > supervision._GRACE_S
