"""What `pipeline.py run` refuses before it starts anything."""

import json
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from launch import commands


@pytest.fixture
def refused(monkeypatch, capsys, tmp_path):
    """Run `pipeline.py run` with arguments that it must refuse; gives the line that it prints."""

    def never(*arguments):
        raise AssertionError("services or a run were started")

    monkeypatch.setattr(commands, "service_environment", never)

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["pipeline.py", "run", *arguments])
        with pytest.raises(SystemExit, match=r"^1$"):
            commands.main(never)
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        return captured.err

    return run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--raw-uri", "/data/raw"], "not a storage URI [--raw-uri]: found '/data/raw'"),
        (["--raw-uri", "/"], "not a storage URI [--raw-uri]: found '/'"),
        (["--work-uri", ""], "not a storage URI [--work-uri]: found ''"),
        (["--raw-uri", "file://raw"], "not a storage URI"),
        (["--raw-uri", "s3:///raw"], "not a storage URI"),
        (["--work-uri", "file:///work/../raw"], "URI climbs out of its folder"),
        (
            ["--raw-uri", "file:///d/", "--work-uri", "file:///d"],
            "among the raw events [--work-uri]",
        ),
        (
            ["--raw-uri", "s3://b/d", "--work-uri", "s3://b/d/work"],
            "found s3://b/d/work in s3://b/d",
        ),
        (
            ["--work-uri", "s3://iceaggr/raw/simulated-competition-100000/w"],
            "among the raw events [--work-uri]",
        ),
        (["--raw-uri", "file:///d", "--summary", "/d/f.json"], "among the raw events [--summary]"),
        (["--raw-uri", "https://ana:canary@host/raw"], "found 'https://***@host/raw'"),
        (["--max-train-minutes", "inf"], "invalid limit of training [--max-train-minutes]"),
        (["--experiment-name", ""], "invalid name [--experiment-name]"),
        (["--start-from", "champ"], "--start-from has a value that is not allowed"),
        (["--raw-layout", "graphnet"], "--raw-layout has a value that is not allowed"),
        (["--raw-layout", "nubench"], "nothing to convert"),
        (["--gpu-count", "many"], "bad number [--gpu-count"),
    ],
)
def test_run_refuses_what_no_step_can_use(refused, arguments, message):
    line = refused(*arguments)
    assert message in line
    assert "canary" not in line


@pytest.fixture
def wants_gpu(tmp_path):
    path = tmp_path / "wants_gpu.yaml"
    path.write_text("training: {device: cuda}")
    return str(path)


def test_run_refuses_settings_for_a_gpu_on_a_run_without(refused, wants_gpu):
    line = refused("--config", wants_gpu, "--gpu-count", "0")
    assert "name another device than the run has [--gpu-count and training.device]" in line
    assert "found device cuda and 0 GPUs" in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_run_finds_out_first_that_the_gpus_are_missing(refused, wants_gpu):
    assert "no GPU for this process [training.device]" in refused("--config", wants_gpu)
    line = refused("--gpu-count", "4")
    assert "not a GPU for each process [training.device]: found 0 usable GPUs" in line


def test_run_leaves_the_device_to_the_settings_unless_told():
    arguments = commands._arguments(commands.RunRequest(), "file:///raw")
    assert arguments["train_gpu_count"] == "configured"


@pytest.mark.parametrize("name", ["", "absent/figures.json", "/proc/figures.json"])
def test_run_finds_out_first_that_the_figures_cannot_be_written(refused, tmp_path, name):
    line = refused("--raw-uri", "file:///raw", "--summary", str(tmp_path / name))
    assert f"the figures cannot be written [--summary {tmp_path / name}]" in line


def test_run_keeps_the_figures_of_before_until_it_has_new_ones(refused, tmp_path):
    path = tmp_path / "figures.json"
    figures = {"mean_opening_angle_deg": 40.0, "model_uri": "s3://m"}
    path.write_text(json.dumps(figures))
    refused("--start-from", "champ", "--summary", str(path))
    commands._check_writable(path)
    assert json.loads(path.read_text()) == figures


def test_run_never_writes_its_figures_over_something_else(refused, tmp_path):
    path = tmp_path / "package.json"
    path.write_text('{"name": "mine"}')
    line = refused("--raw-uri", "file:///raw", "--summary", str(path))
    assert f"a file of something else has this name [--summary {path}]" in line
    assert path.read_text() == '{"name": "mine"}'


def test_run_leaves_no_empty_figures_behind(tmp_path):
    commands._check_writable(tmp_path / "figures.json")
    assert list(tmp_path.iterdir()) == []


def test_figures_are_written_before_the_screen_that_may_fail(monkeypatch, tmp_path):
    (tmp_path / "summary").write_text('{"run_name": "one"}', encoding="utf-8")
    written = SimpleNamespace(output=lambda *_: tmp_path / "summary", folder=tmp_path)
    monkeypatch.setattr(commands, "STATE_FOLDER", tmp_path)
    monkeypatch.setattr(commands, "service_environment", lambda *_: nullcontext("addresses"))
    monkeypatch.setattr(commands, "run_here", lambda *_: written)
    monkeypatch.setattr(commands, "LocalRun", lambda _: written)

    def closed(*_):
        raise BrokenPipeError

    monkeypatch.setattr(commands, "print_results", closed)
    request = commands.RunRequest(
        raw_uri="file:///data", work_uri="file:///work", summary=tmp_path / "figures.json"
    )
    with pytest.raises(BrokenPipeError):
        commands._run(None, request)
    assert json.loads(request.summary.read_text()) == {"run_name": "one"}
    assert (tmp_path / "report-one.html").exists()


@pytest.mark.parametrize(
    ("minutes", "asked", "n_events"),
    [(0.0, None, 100_000), (5.0, None, 100_000), (60.0, None, 600_000), (60.0, 2_000, 2_000)],
)
def test_longer_training_gets_more_events(minutes, asked, n_events):
    # the laptop's settings ask for ten minutes
    request = commands.RunRequest(max_train_minutes=minutes, simulate_events=asked)
    assert request.n_simulated_events == n_events


def test_unlimited_numbers_of_minutes_and_events_stay_within_what_can_be_simulated():
    request = commands.RunRequest(max_train_minutes=525_600.0)
    assert request.n_simulated_events == commands.MAX_SIMULATED_EVENTS
