import pytest

from iceaggr.errors import ConfigError
from launch.settings import run_values
from launch.value_checks import check_values


@pytest.mark.parametrize(
    "values",
    [
        {"raw_uri": "s3://bucket/raw", "work_uri": "s3://bucket"},
        {"train_memory": "64Gi", "shard_memory": "1.5G", "evaluate_memory": "1e9"},
        {"raw_uri": "s3://bucket/IceCube runs/größe", "work_uri": "s3://bucket/a@b"},
        {"train_cpu": "500m", "shard_cpu": "2"},
        {"train_max_minutes": 0.0},
        {"train_node_selector": {}, "train_tolerations": []},
        {"train_node_selector": {"pool": "gpu"}},
        {"train_tolerations": [{"key": "a", "effect": "NoExecute", "tolerationSeconds": 300.0}]},
        {"train_tolerations": [{"operator": "Exists"}, {"key": "gpu", "value": "big"}]},
        {"train_node_selector": {"node.example.org/pool": "", "zone": "a_1"}},
        {"train_memory": "64Mi", "shard_memory": "2E", "evaluate_memory": "1e10"},
        {"train_gpu_type": "nvidia.com/mig-3g.40gb"},
        {"experiment_name": "deep ice"},
    ],
)
def test_check_values_accepts_what_the_steps_can_use(values):
    check_values(values, {name: name for name in values})


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("work_uri", "", "s3://BUCKET"),
        ("raw_uri", "/data/raw", "s3://BUCKET"),
        ("raw_uri", "file:///data/raw", "s3://BUCKET"),
        ("raw_uri", "s3:///raw", "s3://BUCKET"),
        ("raw_uri", "gs://bucket/raw", "s3://BUCKET"),
        ("raw_uri", "s3://bucket/../raw", "without `..`"),
        ("raw_uri", "s3://bucket/raw ", "s3://BUCKET"),
        ("work_uri", "s3://bucket/a\nb", "s3://BUCKET"),
        ("train_memory", "16GB", "Kubernetes quantity"),
        ("train_memory", "16 Gi", "Kubernetes quantity"),
        ("shard_memory", "0Gi", "Kubernetes quantity"),
        ("shard_cpu", "-1", "Kubernetes quantity"),
        ("train_memory", "16", "at least 64Mi"),
        ("shard_memory", "1Ki", "at least 64Mi"),
        ("train_memory", "16000m", "at least 64Mi"),
        ("train_cpu", "4Gi", "quantity of cores"),
        ("train_cpu", "4M", "quantity of cores"),
        ("train_cpu", "1e9", "quantity of cores"),
        ("train_max_minutes", float("inf"), "0 or more minutes"),
        ("train_max_minutes", float("nan"), "0 or more minutes"),
        ("train_node_selector", {"bad label!": "x"}, "Kubernetes labels"),
        ("train_node_selector", {"pool": "x y"}, "Kubernetes labels"),
        ("train_node_selector", {"pool": "x" * 64}, "Kubernetes labels"),
        ("train_tolerations", [{"key": "a", "operator": "Foo"}], "operator Exists or"),
        ("train_tolerations", [{"key": "a", "effect": "nope"}], "effect NoSchedule"),
        ("train_tolerations", [{"operator": "Equal", "value": "x"}], "with a key, Equal"),
        ("train_tolerations", [{"key": "a", "operator": "Exists", "value": "x"}], "operator"),
        (
            "train_tolerations",
            [{"key": "a", "effect": "NoExecute", "tolerationSeconds": 1.5}],
            "tolerationSeconds whole",
        ),
        ("train_tolerations", [{"key": "a", "tolerationSeconds": 3}], "with NoExecute"),
        ("train_max_minutes", -1.0, "0 or more minutes"),
        ("train_gpu_type", "A100", "such as nvidia.com/gpu"),
        ("train_gpu_type", "nvidia/gpu", "such as nvidia.com/gpu"),
        ("train_node_selector", {"pool": 3}, "text as values"),
        ("train_tolerations", ["gpu"], "fields key, operator"),
        ("train_tolerations", [{"key": 3}], "fields key, operator"),
        ("train_tolerations", [{"kee": "gpu"}], "fields key, operator"),
    ],
)
def test_check_values_names_what_no_step_can_use(name, value, expected):
    with pytest.raises(ConfigError, match=f"value that no step can use .here.: found .*{expected}"):
        check_values({name: value}, {name: "here"})


@pytest.mark.parametrize("name", ["", "  ", "a\nb"])
def test_check_values_refuses_an_experiment_without_a_name(name):
    with pytest.raises(ConfigError, match=r"not a name \[here\]"):
        check_values({"experiment_name": name}, {"experiment_name": "here"})


def test_run_values_checks_what_it_reads():
    with pytest.raises(ConfigError, match=r"value that no step can use .--set work_uri"):
        run_values({"work_uri": {"parameterType": "STRING"}}, ["work_uri="], None)
