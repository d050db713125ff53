"""Commands that do more than pass their arguments on."""

import json

import pytest
import torch
from typer.testing import CliRunner

from benchmarks import data_path, streaming, train
from iceaggr import cli
from iceaggr.config import PromotionConfig
from iceaggr.errors import ConfigError, RawDataError, TrainingError
from iceaggr.steps.run_folder import RunFolder
from iceaggr.tracking.registry import ModelRegistry
from tests.events.raw_layout import write_raw_layout
from tests.training.small_runs import small_config, small_inputs


@pytest.fixture
def champions(tmp_path, monkeypatch):
    """A registry in a file, in which both names have had the champions 1, 2 and 3."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/registry.db")
    registry = ModelRegistry()
    names = PromotionConfig().model_name, "another"
    for name in names:
        registry._client.create_registered_model(name)
        for _ in range(3):
            made = registry._client.create_model_version(name, "s3://iceaggr/nowhere")
            version = registry.version(name, str(made.version))
            registry.set_champion(version, registry.champion(name), {"verdict": "promoted"})
    return lambda: [registry.champion(name).version for name in names]


def test_rollback_takes_the_default_model_or_the_one_that_is_named(champions):
    result = CliRunner().invoke(cli.app, ["promote", "--rollback"])
    assert result.output == "champion is models:/iceaggr-direction/2 again\n"
    assert champions() == ["2", "3"]
    result = CliRunner().invoke(cli.app, ["promote", "--rollback", "another"])
    assert result.output == "champion is models:/another/2 again\n"
    assert champions() == ["2", "2"]


@pytest.mark.parametrize("number", ["nan", "inf"])
@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", "--output", "a.parquet", "--model", "m", "--raw-uri", "r", "--refine-above"],
        ["convert", "absent.db", "--out", "file:///absent/raw", "--time-offset"],
    ],
)
def test_a_number_that_compares_with_nothing_is_refused(arguments, number):
    result = CliRunner().invoke(cli.app, [*arguments, number])
    assert result.exit_code == 2
    assert f"Invalid value for '{arguments[-1]}'" in result.output


@pytest.mark.parametrize("arguments", [[], ["iceaggr-direction"]])
def test_promote_says_what_it_needs_when_there_is_nothing_to_promote(arguments):
    result = CliRunner().invoke(cli.app, ["promote", *arguments])
    assert isinstance(result.exception, ConfigError)
    assert "nothing to promote" in str(result.exception)
    assert "expected --folder FOLDER, or --rollback [MODEL_NAME]" in str(result.exception)


def test_simulate_says_which_seeds_there_are():
    out = ["--out", "file:///nowhere", "--events", "3"]
    result = CliRunner().invoke(cli.app, ["simulate", *out, "--seed", "99999999999999999999999"])
    assert result.exit_code == 2
    assert "'--seed'" in result.output
    assert result.exc_info[0] is SystemExit


@pytest.mark.parametrize("command", ["shard", "stats", "check", "train", "evaluate", "promote"])
def test_folder_without_a_name_is_not_the_current_one(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    raw = ["--raw-uri", "file:///nowhere"] if command == "shard" else []
    result = CliRunner().invoke(cli.app, [command, *raw, "--folder", " "])
    assert isinstance(result.exception, ConfigError)
    assert "no folder named [--folder]: found ' '" in str(result.exception)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["x" * 300, "file/below", "folder"])
def test_config_that_is_no_file_is_not_found(name, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    options = ["--raw-uri", "file:///nowhere", "--folder", str(tmp_path / "run")]
    result = CliRunner().invoke(cli.app, ["shard", *options, "--config", str(tmp_path / name)])
    assert isinstance(result.exception, ConfigError)
    assert "configuration file not found" in str(result.exception)


def test_folder_that_no_folder_can_be_called_holds_no_run(tmp_path):
    result = CliRunner().invoke(cli.app, ["stats", "--folder", str(tmp_path / ("x" * 300))])
    assert isinstance(result.exception, ConfigError)
    assert "folder holds no run" in str(result.exception)


def shard_command(folder, *options):
    raw_uri = write_raw_layout(folder / "raw", n_files=3, n_events_per_file=20, mean_pulses=20)
    return ["shard", "--raw-uri", raw_uri, "--folder", str(folder / "run"), *options]


def test_what_the_machine_refuses_outside_a_step_is_one_line(tmp_path, monkeypatch, capsys):
    command = shard_command(tmp_path)
    (tmp_path / "run" / "units" / "00000.json").mkdir(parents=True)
    monkeypatch.setattr("sys.argv", ["iceaggr", *command])
    with pytest.raises(SystemExit, match="1"):
        cli.main()
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: a folder has the name of the local file [{tmp_path}/run/units/")


def test_shard_goes_on_over_its_folder_where_it_stopped(tmp_path):
    command = shard_command(tmp_path)
    damaged = tmp_path / "raw" / "train" / "batch_3.parquet"
    sound = damaged.read_bytes()
    damaged.write_bytes(sound[: len(sound) // 2])
    assert isinstance(CliRunner().invoke(cli.app, command).exception, RawDataError)
    stats = CliRunner().invoke(cli.app, ["stats", "--folder", str(tmp_path / "run")])
    assert "work units were not sharded" in str(stats.exception)
    assert not (tmp_path / "run" / "manifest.json").exists()
    damaged.write_bytes(sound)
    again = CliRunner().invoke(cli.app, command)
    assert again.exception is None
    assert "2 of 3 files reused" in again.output
    stats = CliRunner().invoke(cli.app, ["stats", "--folder", str(tmp_path / "run")])
    assert stats.exception is None
    assert "3 raw files: 2 sharded before, 1 new" in stats.output


@pytest.fixture
def run_folder(tmp_path):
    """Write the documents that `iceaggr train` finds in the folder of a run."""

    def write(**training):
        config = small_config(training=training)
        inputs = small_inputs(tmp_path / "data", config)
        work_uri = (tmp_path / "work").as_uri()
        run = RunFolder.create(tmp_path / "run", "file:///raw", work_uri, "x", config)
        run.manifest.write_text(inputs.manifest.to_json())
        run.normalization.write_text(inputs.normalization.to_json())
        return ["train", "--folder", str(run.path)]

    return write


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_train_stops_where_the_gpus_of_the_settings_or_the_option_are_missing(run_folder):
    command = run_folder(device="cuda")
    result = CliRunner().invoke(cli.app, command)
    assert isinstance(result.exception, TrainingError)
    assert "no GPU for this process [training.device]: found 0 usable" in str(result.exception)
    result = CliRunner().invoke(cli.app, [*command, "--gpu-count", "4"])
    assert "not a GPU for each process" in str(result.exception)


def test_train_refuses_no_gpus_for_settings_that_want_one(run_folder):
    result = CliRunner().invoke(cli.app, [*run_folder(device="cuda"), "--gpu-count", "0"])
    assert isinstance(result.exception, ConfigError)
    assert "found device cuda and 0 GPUs" in str(result.exception)


def test_train_says_where_it_trained(run_folder, capfd):
    result = CliRunner().invoke(cli.app, run_folder(device="cpu", n_epochs=1))
    assert result.exception is None
    # the process that trains says so itself
    assert "min on cpu, validation" in capfd.readouterr().out


@pytest.mark.parametrize("what", list(cli.Benchmark))
def test_bench_reaches_each_benchmark_of_the_checkout(what, monkeypatch):
    (module,) = [one for one in (data_path, streaming, train) if hasattr(one, f"bench_{what}")]
    # without their work
    monkeypatch.setattr(module, f"bench_{what}", lambda *given: {what.value: len(given)})
    result = CliRunner().invoke(cli.app, ["bench", what])
    assert result.exception is None
    assert json.loads(result.output) == {what.value: int(what == "train")}
