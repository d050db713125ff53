"""What `pipeline.py run` refuses before it starts anything."""

import json

import pytest

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
        (["--raw-uri", "file:///d/", "--work-uri", "file:///d"], "raw events and results in one"),
        (["--raw-uri", "https://ana:canary@host/raw"], "found 'https://***@host/raw'"),
        (["--max-train-minutes", "inf"], "not a limit of training [--max-train-minutes]"),
        (["--experiment-name", ""], "not a name [--experiment-name]"),
        (["--start-from", "champ"], "--start-from has another value than allowed"),
    ],
)
def test_run_refuses_what_no_step_can_use(refused, arguments, message):
    line = refused(*arguments)
    assert message in line
    assert "canary" not in line


@pytest.mark.parametrize("name", ["", "absent/figures.json", "/proc/figures.json"])
def test_run_finds_out_first_that_the_figures_cannot_be_written(refused, tmp_path, name):
    line = refused("--raw-uri", "file:///raw", "--summary", str(tmp_path / name))
    assert f"the figures cannot be written there [--summary {tmp_path / name}]" in line


def test_run_keeps_the_figures_of_before_until_it_has_new_ones(refused, tmp_path):
    path = tmp_path / "figures.json"
    path.write_text(json.dumps({"kept": True}))
    refused("--start-from", "champ", "--summary", str(path))
    commands._check_writable(path)
    assert json.loads(path.read_text()) == {"kept": True}


def test_run_leaves_no_empty_figures_behind(tmp_path):
    commands._check_writable(tmp_path / "figures.json")
    assert list(tmp_path.iterdir()) == []
