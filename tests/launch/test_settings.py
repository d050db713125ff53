import pytest

from iceaggr.errors import ConfigError
from launch.settings import check_values, run_values


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
        # what the library that reads quantities would take, and no server does
        ("train_memory", "1_6Gi", "Kubernetes quantity"),
        ("train_memory", "٤Gi", "Kubernetes quantity"),
        ("train_memory", "16000000K", "Kubernetes quantity"),
        ("train_memory", "NaN", "Kubernetes quantity"),
        ("train_memory", "1e9999999999999999999", "Kubernetes quantity"),
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
        ("train_max_minutes", 1e6, "at most a year"),
        ("train_node_selector", {"bad label!": "x"}, "Kubernetes labels"),
        ("train_node_selector", {"pool": "x y"}, "Kubernetes labels"),
        ("train_node_selector", {"pool": "x" * 64}, "Kubernetes labels"),
        ("train_tolerations", [{"key": "a", "operator": "Foo"}], "operator Exists, or"),
        ("train_tolerations", [{"key": "a", "effect": "nope"}], "effect NoSchedule"),
        ("train_tolerations", [{"operator": "Equal", "value": "x"}], "Equal with a key"),
        ("train_tolerations", [{"key": "a", "operator": "Exists", "value": "x"}], "operator"),
        (
            "train_tolerations",
            [{"key": "a", "effect": "NoExecute", "tolerationSeconds": 1.5}],
            "tolerationSeconds a whole number",
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
    with pytest.raises(ConfigError, match=f"invalid value .here.: found .*{expected}"):
        check_values({name: value}, {name: "here"})


@pytest.mark.parametrize("name", ["", "  ", "a\nb"])
def test_check_values_refuses_an_experiment_without_a_name(name):
    with pytest.raises(ConfigError, match=r"invalid name \[here\]"):
        check_values({"experiment_name": name}, {"experiment_name": "here"})


def test_run_values_checks_what_it_reads():
    with pytest.raises(ConfigError, match=r"invalid value .--set work_uri"):
        run_values({"work_uri": {"parameterType": "STRING"}}, ["work_uri="], None)


PARAMETERS = {
    "config": {"parameterType": "STRUCT", "defaultValue": {"name": "laptop"}},
    "n": {"parameterType": "NUMBER_INTEGER"},
    "share": {"parameterType": "NUMBER_DOUBLE"},
    "flag": {"parameterType": "BOOLEAN"},
    "items": {"parameterType": "LIST"},
    "word": {"parameterType": "STRING"},
    "gpus": {"parameterType": "STRING", "literals": ["0", "1"]},
}


def test_run_values_reads_each_type():
    settings = ["n=3", "share=1", "flag=true", 'items=[{"a": 1}]', "word=a=b", "gpus=1"]
    assert run_values(PARAMETERS, settings, None) == {
        "n": 3,
        "share": 1,
        "flag": True,
        "items": [{"a": 1}],
        "word": "a=b",
        "gpus": "1",
    }


@pytest.mark.parametrize(
    "setting",
    [
        "n=3.5",
        "n=true",
        "n=three",
        "share=NaN",
        "flag=1",
        "items={}",
        "config=[]",
        "n=",
        "share=1e999",
    ],
)
def test_run_values_refuses_another_type(setting):
    with pytest.raises(ConfigError, match=f"value of the wrong type .*--set {setting[:3]}"):
        run_values(PARAMETERS, [setting], None)


GPU_PARAMETERS = {
    **PARAMETERS,
    "train_gpu_count": {"parameterType": "STRING", "literals": ["0", "1"], "defaultValue": "0"},
}


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        (["config.training.device=cuda"], "default of train_gpu_count and training.device"),
        (["config.training.device=cpu", "train_gpu_count=1"], "--set train_gpu_count=1 and"),
    ],
)
def test_run_values_refuses_a_device_that_the_run_does_not_have(settings, where):
    with pytest.raises(ConfigError, match=f"name another device than the run has .{where}"):
        run_values(GPU_PARAMETERS, settings, None)


def test_run_values_lets_device_and_gpus_agree():
    settings = ["config.training.device=cuda", "train_gpu_count=1"]
    values = run_values(GPU_PARAMETERS, settings, None)
    assert values["config"]["training"]["device"] == "cuda"
    assert run_values(GPU_PARAMETERS, ["train_gpu_count=1"], None) == {"train_gpu_count": "1"}


def test_run_values_says_in_words_which_type_is_wanted():
    with pytest.raises(ConfigError, match=r"--set share=much.*expected a number\.$"):
        run_values(PARAMETERS, ["share=much"], None)


def test_run_values_names_the_parameters_when_one_is_unknown():
    with pytest.raises(ConfigError, match=r"unknown parameter.*found 'm'.*one of config, flag, gp"):
        run_values(PARAMETERS, ["m=3"], None)


def test_run_values_suggests_the_parameter_that_was_meant():
    with pytest.raises(ConfigError, match=r"unknown parameter.*Did you mean share\?$"):
        run_values(PARAMETERS, ["shares=3"], None)


@pytest.fixture
def settings_file(tmp_path):
    """Write a file of settings; gives its path."""

    def write(text):
        path = tmp_path / "parameters.env"
        path.write_text(text)
        return path

    return write


def test_run_values_reads_a_file_that_a_single_setting_overrules(settings_file):
    path = settings_file("# sizes\nn = 3\n\n  word\t= a=b  \nconfig.training.n_epochs=7\n")
    assert run_values(PARAMETERS, [], None, path)["config"]["training"]["n_epochs"] == 7
    values = run_values(PARAMETERS, ["n=4"], None, path)
    assert (values["n"], values["word"]) == (4, "a=b")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n=1\nshares=1", r"unknown parameter .*line 2: shares\].*Did you mean share\?"),
        ("gpus=3", r"gpus has a value that is not allowed .*line 1: gpus=3"),
        ("n=x", r"value of the wrong type .*line 1: n=x"),
        ("n", r"not a setting .*line 1: n\]"),
        ("n=1\nn=2", r"the same parameter twice .*line 2: n=2"),
        ("config.training.epochs=7", r"unknown key training.epochs .*line 1: config.training"),
    ],
)
def test_run_values_names_the_line_of_a_file(settings_file, text, message):
    with pytest.raises(ConfigError, match=message):
        run_values(PARAMETERS, [], None, settings_file(text))


def test_run_values_reads_a_file_that_begins_with_a_byte_order_mark(settings_file):
    assert run_values(PARAMETERS, [], None, settings_file("\ufeffn=3\n")) == {"n": 3}


def test_run_values_refuses_a_file_that_is_no_text(tmp_path):
    (tmp_path / "parameters.env").write_bytes(b"n=\xff\xfe\n")
    with pytest.raises(ConfigError, match=r"cannot read the settings .*expected a text file"):
        run_values(PARAMETERS, [], None, tmp_path / "parameters.env")


def test_run_values_blames_the_setting_with_which_a_mistake_came_in(settings_file):
    path = settings_file("config.training.seed=1\nconfig.training.epochs=7\n")
    settings = ["config.training.n_epochs=7"]
    with pytest.raises(ConfigError, match=r"unknown key training\.epochs \[.*line 2: config"):
        run_values(PARAMETERS, settings, None, path)


def test_run_values_allows_a_contradiction_that_a_later_setting_ends():
    settings = ["config.model.n_heads=7", "config.model.d_model=70"]
    assert run_values(PARAMETERS, settings, None)["config"]["model"]["n_heads"] == 7
    with pytest.raises(ConfigError, match=r"\[--set config\.model\.d_model=69\]"):
        run_values(PARAMETERS, [settings[0], "config.model.d_model=69"], None)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("pasword=canary", r"unknown parameter \[--set pasword\]"),
        ("word_uri=https://ana:canary@host/raw", r"found 'https://\*\*\*@host/raw'"),
        ("word_uri=s3://KEY:canary@bucket/raw", r"\[--set word_uri=s3://\*\*\*@bucket/raw\]"),
        ("n=http://ana:canary@host", r"\[--set n=http://\*\*\*@host\]"),
    ],
)
def test_run_values_does_not_quote_a_secret(setting, message):
    parameters = {**PARAMETERS, "word_uri": {"parameterType": "STRING"}}
    with pytest.raises(ConfigError, match=message) as refused:
        run_values(parameters, [setting], None)
    assert "canary" not in str(refused.value)


def test_run_values_refuses_json_that_is_too_deep():
    with pytest.raises(ConfigError, match="value of the wrong type"):
        run_values(PARAMETERS, ["items=" + "[" * 100_000], None)


def test_run_values_needs_the_file_it_is_given(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read the settings .*absent\.env"):
        run_values(PARAMETERS, [], None, tmp_path / "absent.env")


def test_run_values_refuses_what_is_no_setting():
    with pytest.raises(ConfigError, match=r"not a setting \[--set n\]: expected name=value"):
        run_values(PARAMETERS, ["n"], None)


def test_run_values_keeps_to_the_dropdown():
    with pytest.raises(ConfigError, match=r"gpus has a value.*found '3', expected one of '0'"):
        run_values(PARAMETERS, ["gpus=3"], None)


def test_run_values_lays_fields_over_the_file(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text("training: {n_epochs: 3, learning_rate: 0.1}\n")
    settings = ["config.training.n_epochs=7", "config.loss.kind=angle"]
    config = run_values(PARAMETERS, settings, path)["config"]
    assert (config["training"]["n_epochs"], config["training"]["learning_rate"]) == (7, 0.1)
    assert config["loss"]["kind"] == "angle"


def test_run_values_lays_fields_over_the_default_of_the_graph():
    config = run_values(PARAMETERS, ["config.training.n_epochs=7"], None)["config"]
    assert (config["name"], config["training"]["n_epochs"]) == ("laptop", 7)
    assert PARAMETERS["config"]["defaultValue"] == {"name": "laptop"}


@pytest.mark.parametrize(
    "settings",
    [
        ["raw_uri=s3://b/work/"],
        ["work_uri=s3://b/raw"],
        ["raw_uri=s3://b/work"],
        ["work_uri=s3://b/raw/work"],
        ["raw_uri=s3://b"],
        ["raw_uri=s3://b/work/shards"],
    ],
)
def test_run_values_refuses_results_among_the_raw_events(settings):
    parameters = {
        name: {"parameterType": "STRING", "defaultValue": f"s3://b/{name[:-4]}"}
        for name in ("raw_uri", "work_uri")
    }
    with pytest.raises(ConfigError, match=r"among the raw events .--set "):
        run_values(parameters, settings, None)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("config.training.epochs=7", "unknown key training.epochs"),
        ("config.training.n_epochs=no", "bad value for training.n_epochs"),
        ("config.name.first=x", "not a section of the configuration"),
    ],
)
def test_run_values_refuses_settings_that_no_step_would_accept(setting, message):
    with pytest.raises(ConfigError, match=message):
        run_values(PARAMETERS, [setting], None)
