"""Every kind of bad input through the real commands: it stops, it is counted, or it is sound."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from pathlib import Path

import mlflow
import pytest

from iceaggr.errors import IceaggrError
from iceaggr.shards.manifest import SourceFile
from tests.bad_input.case import Accepts, Case, Quarantines, Stops
from tests.bad_input.cases import GROUPS
from tests.bad_input.scene import Scene
from tests.bad_input.sound import write_sound

RAW_GROUPS = ("Batch files", "Columns of a batch file", "Single pulses", "Events")
RAW_GROUPS += ("Several raw files",)
RAW_GROUPS += ("The meta file", "The truth", "Places and times", "The geometry", "Settings")
TRAINED_GROUPS = ("Documents between steps", "The truth, later", "Checkpoints and models")
TRAINED_GROUPS += ("Predictions",)


def cases_of(*groups: str) -> list[object]:
    return [pytest.param(case, id=case.name) for group in groups for case in GROUPS[group]]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    write_sound(folder)
    return folder


@pytest.fixture
def scene(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copytree(sound, tmp_path / "raw")
    return Scene(tmp_path)


@pytest.fixture(scope="module")
def trained(sound: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a run up to its model, and the folder that their URIs name."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(sound, folder / "raw")
    run = Scene(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        run.shard_and_count()
        run.command("train")
    shutil.copytree(folder, folder.with_name("copy"))
    return folder


@pytest.fixture
def trained_scene(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    """The same files again, whatever the case before did to them."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.rmtree(trained)
    shutil.copytree(trained.with_name("copy"), trained)
    return Scene(trained)


@pytest.mark.parametrize("case", cases_of(*RAW_GROUPS))
def test_bad_raw_events_and_settings_come_to_their_stated_end(case: Case, scene: Scene) -> None:
    meet(case, scene)


@pytest.mark.parametrize("case", cases_of(*TRAINED_GROUPS))
def test_damage_between_steps_comes_to_its_stated_end(case: Case, trained_scene: Scene) -> None:
    meet(case, trained_scene)


@pytest.mark.integration
@pytest.mark.parametrize("case", cases_of("Object store and registry"))
def test_bad_input_in_services_comes_to_its_stated_end(
    case: Case, sound: Path, tmp_path: Path, mlflow_service: object
) -> None:
    shutil.copytree(sound, tmp_path / "raw")
    meet(case, Scene(tmp_path))


def meet(case: Case, scene: Scene) -> None:
    """Damage the scene, go in as a user does, compare with what is stated."""
    case.damage(scene)
    if isinstance(case.expect, Stops):
        with pytest.raises(IceaggrError, match=r"\S") as caught:
            case.enter(scene)
        assert_whole(caught.value, case.expect)
        return
    case.enter(scene)
    for file in scene.manifest().source_files:
        assert file.n_pulses_in == file.n_pulses_kept + file.n_pulses_rejected
        assert file.n_events_in == file.n_events_kept + sum(file.rejected_events.values())
    if isinstance(case.expect, Accepts):
        case.expect.check(scene)
    else:
        assert_counted(scene, case.expect)


def assert_whole(error: IceaggrError, stated: Stops) -> None:
    """Every part is there, says what is stated, and stands in the sentence that users see."""
    for part in ("where", "found", "expected", "remedy"):
        found = str(getattr(error, part))
        assert found not in ("", "None"), f"no {part}: {error}"
        assert re.search(getattr(stated, part), found), f"{part} of: {error}"
        assert found in str(error)


def assert_counted(scene: Scene, stated: Quarantines) -> None:
    """Manifest and quarantine file tell the same, reason by reason."""
    files = scene.manifest().source_files
    assert total(files, "rejected_pulses") == stated.pulses
    assert total(files, "rejected_events") == stated.events
    rows = scene.quarantine()
    pulses = rows[rows["pulse_index"].notna()]
    assert pulses["pulse_reason"].value_counts().to_dict() == stated.pulses
    events = rows.dropna(subset="event_reason").drop_duplicates("event_id")
    assert events["event_reason"].value_counts().to_dict() == stated.events


@pytest.mark.integration
def test_everything_rejected_is_counted_in_manifest_data_card_and_mlflow(
    sound: Path, tmp_path: Path, mlflow_service: object
) -> None:
    shutil.copytree(sound, tmp_path / "raw")
    scene = Scene(tmp_path, experiment_name="bad-input-counted")
    scene.set_pulse("charge", -1)
    scene.set_meta("zenith", 1, 99.0)
    scene.edit_geometry(lambda lines: lines.__delitem__(slice(101, 131)))
    scene.shard_and_count()
    files = scene.manifest().source_files
    pulses, events = total(files, "rejected_pulses"), total(files, "rejected_events")
    assert pulses.keys() == {"charge_not_positive", "event_rejected", "sensor_not_in_geometry"}
    assert events == {"label_out_of_range": 1}
    assert len(scene.quarantine()) == sum(pulses.values())
    card = (scene.run / "data_card.html").read_text()
    for reason, n_rejected in {**pulses, **events}.items():
        assert re.search(rf"{reason}\D+{n_rejected:,}\D", card), reason
    [run] = mlflow.search_runs(experiment_names=[scene.experiment_name], output_format="list")
    metrics = run.data.metrics
    assert metrics["volume/pulses_rejected"] == sum(pulses.values())
    assert metrics["volume/pulses_in"] == metrics["volume/pulses_kept"] + sum(pulses.values())
    assert metrics["volume/pulses_kept"] == sum(file.n_pulses_kept for file in files)
    assert metrics["volume/n_events_rejected"] == 1


def total(files: tuple[SourceFile, ...], name: str) -> dict[str, int]:
    """Add up what was rejected of all files, by reason."""
    return dict(sum((Counter(getattr(file, name)) for file in files), Counter()))
