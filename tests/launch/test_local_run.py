import io
import os
import tempfile
from pathlib import Path

import pytest
from kfp import dsl
from rich.console import Console

from iceaggr.progress import PROGRESS_FILE_VARIABLE
from iceaggr.tracking.run import SPOOL_PREFIX
from launch.display import RunDisplay
from launch.local_run import PipelineRunError, run_here


@dsl.component(base_image="python", install_kfp_package=False)
def tell(text: str, told: dsl.Output[dsl.Artifact]) -> None:
    import os

    from iceaggr.progress import StepProgress

    with StepProgress("tell") as progress:
        if text == "killed":
            with open(os.environ["ICEAGGR_PROGRESS_FILE"], "a", encoding="utf-8") as file:
                file.write('{"kind": "upd')
            os._exit(9)
        if text == "wrong":
            raise ValueError(text)
        with open(told.path, "w", encoding="utf-8") as file:
            file.write(f"{text} {os.environ['TMPDIR']}")
        progress.conclude(text)


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Run a graph of one step here; gives the finished run and what the terminal showed."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()

    def run(text, prepare=None):
        @dsl.pipeline(name="telling")
        def graph(text: str) -> None:
            tell(text=text)

        output = io.StringIO()
        display = RunDisplay(Console(file=output))
        done = run_here(lambda: graph(text=text), tmp_path / "run", display, prepare)
        return done, output.getvalue()

    return run


def test_run_here_shows_the_step_and_leaves_its_output_and_no_temporary_file(call, tmp_path):
    done, shown = call("[hello]")
    assert shown.startswith("tell                 done")
    assert shown.endswith("[hello]\n")
    text, folder = done.output("tell", "told").read_text().split()
    assert (text, Path(folder).parent) == ("[hello]", tmp_path / "tmp")
    assert list((tmp_path / "tmp").iterdir()) == []
    assert os.environ["TMPDIR"] == str(tmp_path / "tmp")
    assert PROGRESS_FILE_VARIABLE not in os.environ


def test_run_here_keeps_tracking_records_that_nobody_took(call, tmp_path):
    def prepare():
        # a step whose server and object store are both away, as it tells where its records lie
        spool = Path(tempfile.mkdtemp(prefix=f"{SPOOL_PREFIX}x-", dir=os.environ["TMPDIR"]))
        (spool / "unsent.jsonl").write_text("{}")
        (spool.parent / "other").touch()

    call("hello", prepare)
    (kept,) = (tmp_path / "tmp").rglob("*.jsonl")
    assert {path.name for path in kept.parents[1].iterdir()} == {kept.parent.name}


def test_run_here_tells_the_sentence_of_the_step_that_failed(call, tmp_path):
    words = rf"tell failed: unexpected ValueError: wrong\. Full log: {tmp_path}/run/kfp\.log"
    with pytest.raises(PipelineRunError, match=words):
        call("wrong")


def test_run_here_says_that_the_run_failed_when_a_step_was_killed_while_it_reported(call):
    with pytest.raises(PipelineRunError, match=r"the run failed: .*Full log: "):
        call("killed")


def test_run_here_runs_no_step_when_there_is_nothing_to_work_on(call, tmp_path):
    def prepare():
        raise ValueError("no events")

    with pytest.raises(PipelineRunError, match=r"the run failed: no events\. Full log: "):
        call("hello", prepare)
    assert not (tmp_path / "run" / "artifacts").exists()


def test_output_names_what_is_missing(call):
    with pytest.raises(
        PipelineRunError, match=r"output absent of tell is missing \[/.*artifacts\]"
    ):
        call("hello")[0].output("tell", "absent")
