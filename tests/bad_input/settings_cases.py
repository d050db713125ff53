"""Settings: the configuration, the schedule, the folder of a run."""

from __future__ import annotations

from collections.abc import Callable

from launch.commands import _app
from pipeline import make_pipeline
from tests.bad_input.case import Case, Stops
from tests.bad_input.scene import Scene, iceaggr

CONFIG = r"config\.yaml"
EXPLAINED = "src/iceaggr/config/"


def _text(text: str) -> Callable[[Scene], object]:
    return lambda scene: (scene.folder / "config.yaml").write_text(text)


def _refused(name: str, words: str, text: str, found: str, expected: str, remedy: str = "") -> Case:
    """A configuration that is refused."""
    return Case(
        f"config-{name}",
        words,
        "refused before anything runs",
        _text(text),
        Stops(CONFIG, found, expected, remedy or EXPLAINED),
    )


def _bad_cron(scene: Scene) -> None:
    arguments = ["schedule", "--cron", "0 0 25 * * 0", "--host", "http://127.0.0.1:9"]
    _app(make_pipeline)(arguments, standalone_mode=False)


def _shard_into(scene: Scene, name: str) -> None:
    (scene.folder / "README.md").write_text("a file")
    folder = str(scene.folder / name) if name else ""
    iceaggr("shard", "--raw-uri", scene.raw_uri, "--folder", folder)


SETTINGS = [
    _refused(
        "unknown-field",
        "configuration with `lerning_rate`",
        "training:\n  lerning_rate: 1.0e-3\n",
        "a key with that name",
        "one of .*learning_rate",
        r"Did you mean training\.learning_rate\?",
    ),
    _refused(
        "field-in-wrong-section",
        "`learning_rate` under `model`",
        "model:\n  learning_rate: 1.0e-3\n",
        "a key with that name",
        "one of d_model",
        r"Did you mean training\.learning_rate\?",
    ),
    _refused(
        "missing-value", "a field without a value", "data:\n  n_events:\n", "nothing", "whole"
    ),
    _refused("absurd-value", "learning rate 0", "training: {learning_rate: 0}", "0", "more than 0"),
    _refused(
        "not-finite", "learning rate .nan", "training: {learning_rate: .nan}", "nan", "finite"
    ),
    _refused("negative", "-5 events", "data: {n_events: -5}", "-5", "0 or more"),
    _refused("text-for-number", "`n_epochs: many`", "training: {n_epochs: many}", "many", "whole"),
    _refused("flag-for-number", "`n_epochs: true`", "training: {n_epochs: true}", "True", "number"),
    _refused(
        "unknown-choice",
        "`device: cudda`",
        "training: {device: cudda}",
        "cudda",
        "'auto', 'cpu' or 'cuda'",
        r"Did you mean cuda\?",
    ),
    _refused(
        "contradiction",
        "width 10 for 4 heads",
        "model: {d_model: 10, n_heads: 4}",
        "d_model",
        "d_model 10 is no multiple of n_heads 4",
    ),
    _refused(
        "nothing-to-train-on",
        "validation and test share of 0.48 each",
        "data: {validation_share: 0.48, test_share: 0.48}",
        "validation_share",
        "at most 0.9 together",
    ),
    _refused(
        "too-many-threads", "a million workers", "batches: {n_workers: 1000000}", "1000000", "256"
    ),
    _refused(
        "rate-without-bound",
        "learning rate 1e300",
        "training: {learning_rate: 1e300}",
        r"1e\+300",
        "1.0 or less",
    ),
    _refused("seed-negative", "seed -1", "evaluation: {seed: -1}", "-1", "0 or more"),
    _refused(
        "seed-of-70-bits", "seed 2^70", f"training: {{seed: {2**70}}}", "1180591620", "2147483647"
    ),
    _refused(
        "bootstrap-without-end",
        "10^9 bootstrap samples",
        "evaluation: {n_bootstrap: 1000000000}",
        "1000000000",
        "100000 or less",
    ),
    _refused(
        "name-of-two-lines",
        "a registered name with a line break",
        'promotion: {model_name: "a\\nb"}',
        "a.nb",
        "printable",
    ),
    _refused(
        "time-of-day",
        "`max_minutes: 1:30:00`",
        "training: {max_minutes: 1:30:00}",
        "1:30:00",
        "a number, not text",
    ),
    _refused("section-is-no-section", "`data: 7`", "data: 7", "7", "names with values"),
    _refused(
        "key-twice",
        "section `training` twice",
        "training: {n_epochs: 3}\ntraining: {seed: 1}\n",
        "key training occurs twice",
        "sections with names and values",
        "configs/",
    ),
    _refused("not-yaml", "no YAML", "data: [1, 2\n", "line|flow", "sections", "configs/"),
    _refused("empty", "an empty file", "", "nothing", "names of sections", "configs/"),
    _refused(
        "half-a-character",
        "`split_salt` of half a character (`\\ud800`)",
        'data: {split_salt: "\\ud800"}',
        "ud800",
        "text of whole characters",
    ),
    Case(
        "run-folder-unnamed",
        "--folder without a name",
        "refused: the current folder is named by a dot",
        lambda scene: None,
        Stops("--folder", "''", "a folder for this run alone", "Name one"),
        enter=lambda scene: _shard_into(scene, ""),
    ),
    Case(
        "run-folder-below-a-file",
        "--folder below a file",
        "refused before anything runs",
        lambda scene: None,
        Stops("--folder .*README", "Not a directory: ", "a folder, or the name", "Give another"),
        enter=lambda scene: _shard_into(scene, "README.md/run"),
    ),
    Case(
        "run-folder-name-too-long",
        "--folder of 300 characters",
        "refused before anything runs",
        lambda scene: None,
        Stops("--folder .*xxx", "File name too long: ", "a folder, or the name", "Give another"),
        enter=lambda scene: _shard_into(scene, "x" * 300),
    ),
    Case(
        "config-missing",
        "no such configuration file",
        "refused before anything runs",
        lambda scene: (scene.folder / "config.yaml").mkdir(),
        Stops(CONFIG, "a folder", "a YAML file", "configs/"),
    ),
    Case(
        "schedule-bad-cron",
        "`--cron` with hour 25",
        "refused before the cluster is asked",
        lambda scene: None,
        Stops("--cron '0 0 25 .*", "hour '25'", r"0\.\.23", "03:00|[Ss]undays|seconds"),
        enter=_bad_cron,
    ),
]
