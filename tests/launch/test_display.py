import io
import json

import pytest
from rich.console import Console

from launch.display import RunDisplay, clock
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
