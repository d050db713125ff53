"""One module names what lies below a work folder."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from iceaggr.errors import ConfigError
from iceaggr.paths import TrainingPaths, WorkPaths, checkpoint_name, step_of
from iceaggr.storage.uris import refuse_work_among_raw

ROOT = Path(__file__).parent.parent
OF_MLFLOW = ("tracking/run_target.py",)
"""Name pages of MLflow."""
FILES = [
    ROOT / "pipeline.py",
    *(p for room in ("src/iceaggr", "components", "launch") for p in (ROOT / room).rglob("*.py")),
]
FOLDERS = ("plans", "shards", "datasets", "runs", "training", "evaluation", "checkpoints", "model")
FOLDERS += ("request", "here", "start", "unfinished_runs", "unsent_tracking")
OWN_WORDS = ("unfinished_runs", "unsent_tracking", "work_units.json", "latest_manifest")
OWN_WORDS += ("previous_manifest", "has_checkpoints", "start.json", "request.json", "result.json")
OWN_WORDS += ("sketch.json", "quarantine.parquet", "events.parquet")


def strings(tree: ast.AST) -> Iterator[tuple[str, bool]]:
    """Give every text but docstrings, and whether it follows a value in an f-string."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    seen: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, documented):
            seen |= {id(n.value) for n in node.body if isinstance(n, ast.Expr)}
        if isinstance(node, ast.JoinedStr):
            for before, part in zip(node.values, node.values[1:], strict=False):
                if isinstance(before, ast.FormattedValue) and isinstance(part, ast.Constant):
                    yield str(part.value), True
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in seen:
            yield node.value, False


def names_of_work_folders(source: str) -> set[str]:
    found = set()
    for text, follows in strings(ast.parse(source)):
        part = text.removeprefix("/").split("/")[0]
        if follows and text.startswith("/") and part in FOLDERS:
            found.add(text)
        # a name of ours, not a word in a sentence
        if " " not in text and any(word in text for word in OWN_WORDS):
            found.add(text)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_other_module_spells_a_name_below_a_work_folder(path: Path) -> None:
    if path.name != "paths.py" and not str(path).endswith(OF_MLFLOW):
        assert names_of_work_folders(path.read_text(encoding="utf-8")) == set()


@pytest.mark.parametrize(
    "line",
    ['f"{run_uri}/training/x"', 'f"{uri}/runs/{run_id}"', 'x / "start.json"', '"sketch.json"'],
)
def test_a_name_that_is_spelled_elsewhere_is_seen(line: str) -> None:
    assert names_of_work_folders(f"def f():\n    '''Words.'''\n    return {line}\n")


def test_names_are_those_of_earlier_work_folders() -> None:
    work = WorkPaths("s3://b/work/")
    run, shards = work.run("r"), work.shards("k")
    training = run.training
    assert work.plan("d") == "s3://b/work/plans/d.json"
    assert work.latest_manifest_uri == "s3://b/work/datasets/latest_manifest.json"
    assert work.previous_manifest_uri == "s3://b/work/datasets/previous_manifest.json"
    assert work.unfinished("r") == "s3://b/work/unfinished_runs/r.json"
    assert work.unsent("r") == "s3://b/work/unsent_tracking/r"
    assert shards.shard("train", 3) == "s3://b/work/shards/k/train-00003.arrow"
    assert shards.manifest_uri == "s3://b/work/shards/k/manifest.json"
    assert shards.sketch_uri == "s3://b/work/shards/k/sketch.json"
    assert shards.quarantine_uri == "s3://b/work/shards/k/quarantine.parquet"
    assert run.work_units_uri == "s3://b/work/runs/r/work_units.json"
    assert run.summary_uri == "s3://b/work/runs/r/summary.json"
    assert run.events_uri == "s3://b/work/runs/r/evaluation/events.parquet"
    assert run.report_uri == "s3://b/work/runs/r/evaluation/report.html"
    assert run.evaluation_table("bins.csv") == "s3://b/work/runs/r/evaluation/bins.csv"
    below = "s3://b/work/runs/r/training"
    assert training.model_uri == f"{below}/model"
    assert training.latest_checkpoint_uri == f"{below}/checkpoints/latest.json"
    assert training.has_checkpoints_uri == f"{below}/has_checkpoints.json"
    assert training.start_uri == f"{below}/start.json"
    assert training.started_from_uri == f"{below}/start"
    assert training.job_request.request_uri == f"{below}/request/request.json"
    assert training.local_request.request_uri == f"{below}/here/request.json"
    assert training.job_request.result_uri == f"{below}/request/result.json"


def test_step_is_read_from_the_name_of_a_checkpoint() -> None:
    assert checkpoint_name(120, "4f" * 32) == "step-00000120-4f4f4f4f4f4f4f4f"
    assert step_of(checkpoint_name(123_456_789, "00" * 32)) == 123_456_789
    assert TrainingPaths("s3://b/x/").uri == "s3://b/x"


@pytest.mark.parametrize("uri", WorkPaths("s3://b/work").folders())
def test_no_folder_that_steps_write_may_lie_among_the_raw_events(uri: str) -> None:
    with pytest.raises(ConfigError, match="results would be written among the raw events"):
        refuse_work_among_raw(uri, "s3://b/work", "work_uri")
