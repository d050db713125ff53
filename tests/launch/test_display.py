import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from launch.display import Addresses, RunDisplay, clock, print_results
from launch.local_run import _messages

NAME = "[raw] events of [/2024]"


def message(kind, **others):
    return {
        "kind": kind,
        "step": "shard_events",
        "task": "1",
        "seconds": 61.0,
        "text": "",
        **others,
    }


@pytest.mark.parametrize("is_terminal", [True, False])
def test_show_takes_brackets_for_text(is_terminal):
    output = io.StringIO()
    with RunDisplay(Console(file=output, force_terminal=is_terminal, width=200)) as display:
        display.show(message("start"))
        display.show(message("done", text=NAME))
    assert NAME in output.getvalue()


def test_show_prints_the_end_of_each_step_on_one_plain_line():
    output = io.StringIO()
    with RunDisplay(Console(file=output)) as display:
        for kind, text in (("start", ""), ("update", "too soon"), ("done", "3 files")):
            display.show(message(kind, text=text, done=1.0, total=2.0))
    assert output.getvalue() == "shard_events         done      1:01  3 files\n"


def test_show_leaves_the_reason_of_a_failure_to_the_error():
    output = io.StringIO()
    with RunDisplay(Console(file=output)) as display:
        display.show(message("failed", text="a long reason"))
    assert output.getvalue() == "shard_events         FAILED    1:01\n"


def test_messages_pass_over_a_line_that_was_cut():
    whole = json.dumps(message("done"))
    assert list(_messages([whole[:20], whole, ""])) == [message("done")]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (61.9, "1:01"), (3599, "59:59"), (90061, "25:01:01")]
)
def test_clock_shows_hours_of_long_runs_alone(seconds, text):
    assert clock(seconds) == text


SUMMARY = {
    "n_events_test": 3,
    "table": [],
    "pulses_in": 5,
    "pulses_kept": 4,
    "pulses_rejected": 1,
    "n_events_train": 10,
    "n_events_validation": 2,
    "n_source_files": 1,
    "n_source_files_reused": 0,
    "mlflow_run_id": "0" * 32,
    "run_name": "laptop-1",
    "started_from": "scratch",
    "model_uri": "models:/iceaggr-direction/1",
    "promoted": False,
    "promotion": "refused",
    "reason": "not promoted: [reason]",
}


@pytest.fixture(scope="module")
def tracking_uri(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('tracking')}/mlflow.db"


@pytest.fixture
def screen(tracking_uri):
    """Print the screen for files of a folder; gives its text."""

    def show(folder, colours=False, summary=SUMMARY, **addresses):
        output = io.StringIO()
        console = Console(file=output, width=200, force_terminal=colours)
        where = Addresses(tracking_uri, **addresses)
        print_results(console, summary, folder / "report.html", folder / "kfp.log", where)
        return output.getvalue()

    return show


def test_print_results_takes_brackets_for_text(screen):
    folder = Path("/data/[raw]/[/2024]")
    text = screen(folder, stay_up=True)
    assert f"report   {folder}/report.html\n" in text
    assert f"log      {folder}/kfp.log\n" in text
    assert "verdict  not promoted: [reason]\n" in text


def test_print_results_colours_the_verdict_alone(screen):
    text = screen(Path("/data"), colours=True, stay_up=True)
    assert "\x1b[33mnot promoted: [reason]\x1b[0m" in text
    assert "\x1b[33m" not in text.replace("\x1b[33mnot promoted", "")


@pytest.mark.parametrize(
    ("promotion", "colour"),
    [("promoted", 32), ("refused", 33), ("not comparable", 31), ("not compared", 31)],
)
def test_print_results_tells_a_decision_from_one_that_could_not_be_made(screen, promotion, colour):
    summary = SUMMARY | {"promotion": promotion, "reason": "why"}
    text = screen(Path("/data"), colours=True, summary=summary, stay_up=True)
    assert f"verdict  \x1b[{colour}mwhy\x1b[0m" in text


@pytest.mark.parametrize("stay_up", [True, False])
def test_print_results_says_when_the_server_is_stopped(screen, stay_up):
    assert ("`make up` starts it again" in screen(Path("/data"), stay_up=stay_up)) != stay_up
