import pytest

from iceaggr.errors import ConfigError
from launch.settings import run_values

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
    ["n=3.5", "n=true", "n=three", "share=NaN", "flag=1", "items={}", "config=[]", "n="],
)
def test_run_values_refuses_another_type(setting):
    with pytest.raises(ConfigError, match=f"value of another type .*--set {setting[:3]}"):
        run_values(PARAMETERS, [setting], None)


def test_run_values_says_in_words_which_type_is_wanted():
    with pytest.raises(ConfigError, match=r"--set share=much.*expected a number\.$"):
        run_values(PARAMETERS, ["share=much"], None)


def test_run_values_names_the_parameters_when_one_is_unknown():
    with pytest.raises(ConfigError, match=r"unknown parameter.*found 'm'.*one of config, flag, gp"):
        run_values(PARAMETERS, ["m=3"], None)


def test_run_values_refuses_what_is_no_setting():
    with pytest.raises(ConfigError, match=r"not a setting \[--set n\]: expected name=value"):
        run_values(PARAMETERS, ["n"], None)


def test_run_values_keeps_to_the_dropdown():
    with pytest.raises(
        ConfigError, match=r"gpus has another value.*found '3', expected one of '0'"
    ):
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
