"""Files of an operator that are no rendered manifests end in lines about them, never in a trace."""

import pytest

from manifests.check import main

SCHEDULE = """apiVersion: batch/v1
kind: CronJob
metadata: {name: iceaggr-schedule, namespace: a}
spec: {schedule: x}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: iceaggr-schedule, namespace: a}
data: {KFP_HOST: a}
"""
NAMELESS = """apiVersion: batch/v1
kind: Job
metadata: {generateName: a-, namespace: a}
spec: {template: {spec: {restartPolicy: Never, containers: [{name: a, image: a}]}}}
"""
ROLE = "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata: {name: a}\nrules: "


@pytest.fixture
def checked(tmp_path, capsys):
    """Check a file with a text; gives exit code and output."""

    def check(text):
        path = tmp_path / "objects.yaml"
        path.write_text(text)
        return main([str(path)]), capsys.readouterr().out

    return check


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("kind: [", "not YAML: while parsing"),
        ("hello", "holds something other than objects"),
        ("apiVersion: v1", "holds something other than objects"),
        ("---\n---\n", "holds no object"),
        (NAMELESS, "Job ?: container a: no resources.limits.memory"),
        (
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a, namespace: a}",
            "Deployment a: no spec.template.spec",
        ),
        (ROLE + "[{nonResourceURLs: ['*'], verbs: [get]}]", "ClusterRole a: unlimited rights"),
        (SCHEDULE, "CronJob iceaggr-schedule: not one container with args"),
    ],
)
def test_main_says_what_is_wrong_with_an_unusual_file(checked, text, problem):
    code, output = checked(text)
    assert code == 1
    assert problem in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    "text",
    [
        ROLE + "null",
        ROLE + "[{nonResourceURLs: [/healthz], verbs: [get]}]",
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, namespace: a}\ndata:",
        "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, namespace: a}\n---\n",
    ],
)
def test_main_passes_what_has_an_empty_part(checked, text):
    assert checked(text)[0] == 0


def test_main_names_a_file_that_is_not_there(tmp_path, capsys):
    assert main([str(tmp_path / "absent.yaml")]) == 1
    assert "absent.yaml: not YAML: No such file or directory" in capsys.readouterr().out
