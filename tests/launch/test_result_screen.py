import io
from pathlib import Path

import pytest
from rich.console import Console

from launch.result_screen import print_results
from launch.services import Addresses

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
    assert ("`make up` brings it back" in screen(Path("/data"), stay_up=stay_up)) != stay_up
