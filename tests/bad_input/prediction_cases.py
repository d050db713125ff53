"""Predictions with a sound model: of events that are wrong, into places that are."""

from __future__ import annotations

from tests.bad_input.case import Case, Stops
from tests.bad_input.document_cases import the_file
from tests.bad_input.event_cases import META, share_an_id
from tests.bad_input.place_cases import moved_detector
from tests.bad_input.raw_cases import BATCH
from tests.bad_input.scene import Scene, iceaggr

ACCEPT = "nothing was written, and --accept-doubtful"


def predict(scene: Scene, output: str = "directions.parquet") -> None:
    """Give `iceaggr predict`."""
    model = the_file(scene, "runs/*/training/model").as_uri()
    path = str(scene.folder / output)
    iceaggr("predict", "--model", model, "--raw-uri", scene.raw_uri, "--output", path)


PREDICTIONS = [
    Case(
        "prediction-over-raw-events",
        "--output that is a raw file",
        "refused before the first event: raw events are never written to",
        lambda scene: None,
        Stops("--output .*batch_1", "raw/train/batch_1", "outside the raw folder", "another place"),
        enter=lambda scene: predict(scene, "raw/train/batch_1.parquet"),
    ),
    Case(
        "prediction-over-a-folder",
        "--output that is a folder",
        "refused before the first event",
        lambda scene: (scene.folder / "directions.parquet").mkdir(),
        Stops("--output .*directions", "a folder", "a file, or the name of", "another place"),
        enter=predict,
    ),
    Case(
        "prediction-for-another-detector",
        "events of another detector than the model's",
        "prediction stops",
        moved_detector,
        Stops(r"sensor_geometry\.csv", "200 sensors", "the 5160 sensors", "on this detector"),
        enter=predict,
    ),
    Case(
        "prediction-id-twice-across-files",
        "one event_id in two files, to be predicted",
        "prediction stops before the first event, and names id and files",
        share_an_id,
        Stops(META, r"event_id \d+ in batch_id 1, 2", "over all batch files", "added twice"),
        enter=predict,
    ),
    Case(
        "prediction-of-negative-charges",
        "all charges of a file negative, to be predicted",
        "prediction stops with the words of sharding and writes nothing",
        lambda scene: scene.change_pulses(lambda f: f.assign(charge=-f["charge"])),
        Stops(BATCH, r"100\.0% of 40 events: .*charge_not_positive", r"at most 10\.0%", ACCEPT),
        enter=predict,
    ),
    Case(
        "prediction-of-microseconds",
        "all times of a file in microseconds, to be predicted",
        "prediction stops with the words of `iceaggr stats` and writes nothing",
        lambda scene: scene.change_pulses(lambda f: f.assign(time=f["time"] // 1000)),
        Stops(f"{BATCH} time", "a spread", "light needs 6,200 ns", f"times in ns.*{ACCEPT}"),
        enter=predict,
    ),
    Case(
        "prediction-of-charges-in-other-units",
        "all charges of a file ten thousandfold, to be predicted",
        "prediction stops: the model's normalisation says that it was trained on other charges",
        lambda scene: scene.change_pulses(lambda f: f.assign(charge=f["charge"] * 1e4)),
        Stops(f"{BATCH} log10_charge", r"a median of \d.* scales", "within 3", ACCEPT),
        enter=predict,
    ),
    Case(
        "prediction-of-sensors-counted-within-strings",
        "sensor ids that count from 0 in each string, to be predicted",
        "prediction stops: the model was trained on all sensors",
        lambda scene: scene.change_pulses(lambda f: f.assign(sensor_id=f["sensor_id"] % 60)),
        Stops(f"{BATCH} sensor_idx", r"a spread .* scales", r"at least 0\.05", ACCEPT),
        enter=predict,
    ),
]
