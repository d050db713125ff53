"""The raw layout in storage: which files make up a set of raw events, and its detector."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from iceaggr.built_in_detectors import BUILT_IN_NAMES, built_in_detector
from iceaggr.detector import BUILT_IN, Detector, icecube86, parse_geometry
from iceaggr.errors import DetectorError, RawDataError
from iceaggr.interfaces import ObjectStore, StoredObject
from iceaggr.storage.uris import FILE_SCHEME, file_path
from iceaggr.validation import shown

GEOMETRY_FILE = "sensor_geometry.csv"
NOTES_FILE = "source_notes.json"
"""Below the raw URI: what a converted source did not have, as a JSON list of sentences."""
ABSENT_CHARGE = "charge: absent in the source, every pulse is a single photon of 1 p.e."
ABSENT_FLAG = "auxiliary: absent in the source, every pulse counts as part of the trigger"
MADE_FLAG = "auxiliary: absent in the source; True where no near sensor has a pulse within 1 us"
_ABSENT = {ABSENT_CHARGE: "charge_pe", ABSENT_FLAG: "auxiliary"}


def absent_features(notes: Iterable[str]) -> tuple[str, ...]:
    """Name the inputs that a converted source never had: constant, and rightly so."""
    return tuple(_ABSENT[note] for note in notes if note in _ABSENT)


@dataclass(frozen=True)
class RawFile:
    """One batch file."""

    batch_id: int
    stored: StoredObject


@dataclass(frozen=True)
class RawLayout:
    """The files of one set of raw events, batch files in numeric order.

    geometry_uri: '' where the set brings none; see `geometry_of`
    notes: what its source lacks.  skipped: names below the folder of parquet files that are copies
    or no batch.
    """

    raw_uri: str
    labelled: bool
    meta: StoredObject
    files: tuple[RawFile, ...]
    geometry_uri: str
    notes: tuple[str, ...]
    skipped: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """Name the folder of the batch files."""
        return "train" if self.labelled else "test"

    @property
    def skipped_words(self) -> str:
        """Say in one sentence which files below the folder were not read; '' if none."""
        return _skipped([f"{self.folder}/{name}" for name in self.skipped]) if self.skipped else ""


def find_layout(
    store: ObjectStore, raw_uri: str, folder: Literal["auto", "train", "test"] = "auto"
) -> RawLayout:
    """List the raw files below a URI.

    folder: train has labels, test has none; auto takes test where test_meta.parquet exists.
    Raises: RawDataError if the meta file or the batch files are missing.
    """
    raw_uri = raw_uri.rstrip("/")
    if folder == "auto":
        folder = "test" if store.stat(f"{raw_uri}/test_meta.parquet") else "train"
    meta_uri = f"{raw_uri}/{folder}_meta.parquet"
    meta = store.stat(meta_uri)
    if meta is None:
        raise RawDataError(
            "raw meta file is missing",
            where=meta_uri,
            found="no such object",
            expected=f"{folder}_meta.parquet beside {folder}/batch_N.parquet",
            remedy="Check the raw URI; `iceaggr simulate --out URI` makes a set to try",
        )
    files, skipped = _batch_files(store, f"{raw_uri}/{folder}/")
    return RawLayout(
        raw_uri=raw_uri,
        labelled=folder == "train",
        meta=meta,
        files=files,
        skipped=skipped,
        geometry_uri=_geometry_uri(store, raw_uri),
        notes=_notes(store, f"{raw_uri}/{NOTES_FILE}"),
    )


def _batch_files(
    store: ObjectStore, folder_uri: str
) -> tuple[tuple[RawFile, ...], tuple[str, ...]]:
    """Find the batch files, and the names of parquet files that are none: copies and others."""
    files: dict[int, RawFile] = {}
    skipped: list[str] = []
    for stored in store.list(folder_uri):
        name = stored.uri.removeprefix(folder_uri)
        match = re.fullmatch(r"batch_(\d+)\.parquet", name.rsplit("/", 1)[-1])
        _refuse_folder(name, folder_uri)
        if is_copy(name) or match is None:
            skipped += [name] if ".parquet" in name.lower() else []
            continue
        batch_id = int(match[1])
        if batch_id in files:
            raise RawDataError(
                f"two raw files for batch {batch_id}",
                where=stored.uri,
                found=files[batch_id].stored.uri,
                expected="one file per batch",
                remedy="Remove one of them, or move it into a folder named old, whose files are"
                " skipped",
            )
        files[batch_id] = RawFile(batch_id, stored)
    if not files:
        raise RawDataError(
            "no raw batch files",
            where=folder_uri,
            found="no object named batch_N.parquet"
            + (f"; {_skipped([folder_uri + name for name in skipped])}" if skipped else ""),
            expected="at least one",
            remedy="Check the raw URI; it is the folder above train/ or test/",
        )
    return tuple(files[batch_id] for batch_id in sorted(files)), tuple(skipped)


_COPIES = re.compile(
    r"[._~].*|.*~|(copy|kopie|copie|copia) (of|von|de) .*|.*\(\d+\)"
    r"|(.*[ _.-])?(old|backups?|bak|copy|copies|tmp|temp|temporary|trash)\d*([ _.-].*)?",
    re.IGNORECASE,
)
"""Folders of copies and of half-written files: hidden ones (.ipynb_checkpoints, .snapshot), those
of writers (_temporary, _delta_log), and what people call old, backup, tmp or Copy of."""


def is_copy(name: str) -> bool:
    """Tell whether a name below a folder is that of a copy, or leads through a folder of copies.

    What lies there may be another state of the same events or half of one, so it is never read.
    """
    *folders, file = name.split("/")
    return any(_COPIES.fullmatch(part) for part in (*folders, file.removesuffix(".parquet")))


def _skipped(names: Sequence[str]) -> str:
    """Count what was skipped and name one of it."""
    were = "1 file was" if len(names) == 1 else f"{len(names):,} files were"
    such_as = ": " if len(names) == 1 else ", such as "
    return f"{were} skipped as a copy or for its name{such_as}{names[0]}"


def _refuse_folder(path: str, folder_uri: str) -> None:
    """Refuse a batch in parts: some writers of parquet make a folder of the file's name."""
    name, _, part = path.partition("/")
    if part and re.fullmatch(r"batch_\d+\.parquet", name):
        raise RawDataError(
            "raw batch is a folder",
            where=f"{folder_uri}{name}",
            found=f"{part} in it",
            expected="one parquet file",
            remedy="Write each batch as one file, its pulses in the order of the meta file",
        )


def _geometry_uri(store: ObjectStore, raw_uri: str) -> str:
    """Name the geometry file, '' where nothing looks like one."""
    uri = f"{raw_uri}/{GEOMETRY_FILE}"
    if store.stat(uri):
        return uri
    found = next((n for n in _names_in(store, raw_uri) if n.lower() == GEOMETRY_FILE), "")
    if found or _is_local_folder(uri):
        raise RawDataError(
            "the geometry is no file of its name",
            where=f"{raw_uri}/{found or GEOMETRY_FILE}",
            found=found if found not in ("", GEOMETRY_FILE) else "a folder",
            expected=f"a file {GEOMETRY_FILE}",
            remedy="Rename the file, or move it out of the folder",
        )
    return ""


def geometry_of(store: ObjectStore, layout: RawLayout, declared: str = "") -> str:
    """Name the geometry of a set: its own file, or the built-in one if that is declared.

    declared: name of the built-in detector, '' if nobody says so. Sensor ids tell nothing: every
    detector counts from 0.
    Raises: DetectorError if the set brings none and none is declared, or it brings another one.
    """
    if not layout.geometry_uri:
        if declared:
            return declared
        raise no_geometry(
            layout,
            f"Put it there; data.detector: {BUILT_IN} says IceCube-86, and `iceaggr detectors`"
            " lists the other names",
        )
    if declared:
        found = load_detector(store, layout.geometry_uri)
        difference = found.difference_from(load_detector(store, declared))
        if difference:
            raise DetectorError(
                "raw events are not of the detector that the settings declare",
                where=layout.geometry_uri,
                found=difference,
                expected=f"the sensors of data.detector: {declared}, within 1 cm, in its medium",
                remedy="Leave data.detector empty, or give the events of that detector",
            )
    return layout.geometry_uri


def no_geometry(layout: RawLayout, remedy: str) -> DetectorError:
    """Word the error of a set that does not say where its sensors stand."""
    return DetectorError(
        "raw events bring no geometry",
        where=f"{layout.raw_uri}/{GEOMETRY_FILE}",
        found="no such file",
        expected="the sensor table of their detector, which sensor ids do not tell",
        remedy=remedy,
    )


def check_same_detector(
    store: ObjectStore, layout: RawLayout, detector: Detector, is_declared: bool
) -> None:
    """Refuse a model's events whose sensors stand elsewhere, or who knows where.

    detector: of the model.  is_declared: a set without a geometry is said to be of this detector
    Raises: DetectorError.
    """
    if not layout.geometry_uri:
        if is_declared:
            return
        raise no_geometry(layout, "Put it there; --same-detector says that it is the model's")
    found = load_detector(store, layout.geometry_uri)
    difference = found.difference_from(detector)
    if difference:
        raise DetectorError(
            "raw events are of another detector than the model",
            where=layout.geometry_uri,
            found=difference,
            expected=f"the {detector.n_sensors} sensors of the model, within 1 cm,"
            f" in {detector.medium.name}",
            remedy="Predict with a model that was trained on this detector in this medium",
        )


def _names_in(store: ObjectStore, raw_uri: str) -> Iterator[str]:
    """Name files and folders of the raw folder, a folder once for each object in it."""
    for stored in store.list(f"{raw_uri}/"):
        yield stored.uri.removeprefix(f"{raw_uri}/").partition("/")[0]


def _is_local_folder(uri: str) -> bool:
    """Tell an empty folder, which no listing of objects shows."""
    return uri.startswith(FILE_SCHEME) and file_path(uri).is_dir()


def _notes(store: ObjectStore, uri: str) -> tuple[str, ...]:
    if store.stat(uri) is None:
        return ()
    try:
        notes = json.loads(store.read_bytes(uri))
    except (ValueError, RecursionError) as error:
        raise _bad_notes(uri, str(error)) from None
    if not isinstance(notes, list):
        raise _bad_notes(uri, shown(notes))
    for note in notes:
        if not isinstance(note, str):
            raise _bad_notes(uri, f"{shown(note)} in the list")
    return tuple(notes)


def _bad_notes(uri: str, found: str) -> RawDataError:
    return RawDataError(
        "source notes are not a JSON list of sentences",
        where=uri,
        found=found,
        expected='["a sentence", ...]',
        remedy="Convert the source again; the notes say what its events lack",
    )


def load_detector(store: ObjectStore, geometry_uri: str) -> Detector:
    """Load the sensor table of a manifest or layout.

    geometry_uri: CSV in storage, or the name of a built-in table. A CSV of bare positions
    (no string, no efficiency: the public set's) that are the built-in ones within a centimetre
    takes strings and efficiencies from the built-in table, and the medium unless it names one.
    Raises: StorageError, DetectorError.
    """
    if geometry_uri in BUILT_IN_NAMES:
        return built_in_detector(geometry_uri)
    text = store.read_bytes(geometry_uri)
    detector = parse_geometry(text, where=geometry_uri)
    header = text.split(b"\n", 1)[0]
    if b"string" in header or b"efficiency" in header:
        return detector
    known = icecube86()
    is_known = np.array_equal(detector.sensor_id, known.sensor_id) and np.allclose(
        detector.xyz_m, known.xyz_m, rtol=0, atol=0.01
    )
    if not is_known:
        return detector
    # the same positions in water are a benchmark's, not IceCube's
    same_medium = detector.medium == known.medium
    return known if same_medium else replace(known, stated_medium=detector.stated_medium)
