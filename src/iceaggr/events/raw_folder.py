"""A folder of raw events that one writer fills: nothing of another set is ever overwritten.

Batch files come first and the meta file last, so that a crash half-way never looks complete. The
writer's marker, which is the very first file, tells its own unfinished rest from anything else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from iceaggr.errors import RawDataError
from iceaggr.events.layout import GEOMETRY_FILE, NOTES_FILE
from iceaggr.events.truth import TRUTH_FOLDER
from iceaggr.interfaces import ObjectStore

CHECKED = {"write_page_checksum": True}
"""Ranged reads come without any checksum of the store: readers verify those of the pages."""
_REMEDY = "Choose another folder, or delete this one if nobody needs it"


class RawFolder:
    """Writes batch files as they are made and the meta file last, when all are in place.

    Memory holds one row group of the meta file.
    """

    def __init__(self, store: ObjectStore, out_uri: str, scratch: Path, labelled: bool) -> None:
        """scratch: empty local folder; what is published from there is deleted there.

        labelled: train/ is written and may have truth/ beside it, else test/.
        """
        self.labelled = labelled
        self._store = store
        self._out_uri = out_uri.rstrip("/")
        self._scratch = scratch
        self._kind, self._other = ("train", "test") if labelled else ("test", "train")
        self._meta_path = scratch / "meta.parquet"
        self._meta: pq.ParquetWriter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._meta is not None:
            self._meta.close()

    def check_free(self, marker: str, geometry_csv: bytes | None) -> list[str]:
        """Look whether the folder may be filled; nothing is written.

        marker: name of the file by which this writer knows its own unfinished rest.
        geometry_csv: what is to be the geometry; None if that is not known yet.
        Returns the URIs of that rest.
        Raises: RawDataError if the folder holds a complete set, or anything of another set.
        """
        present = {found.uri for found in self._store.list(f"{self._out_uri}/")}
        own_meta, other_meta = (self._uri(f"{k}_meta.parquet") for k in (self._kind, self._other))
        if own_meta in present:
            raise self._taken("folder already holds complete raw events", own_meta)
        # the truth belongs to train/: test/ beside it has none
        folders = (self._kind, TRUTH_FOLDER) if self._kind == "train" else (self._kind,)
        rest = sorted(
            u for u in present if u.startswith(tuple(self._uri(f"{f}/") for f in folders))
        )
        shared = [u for n in (GEOMETRY_FILE, NOTES_FILE) if (u := self._uri(n)) in present]
        if (rest or shared or other_meta in present) and self._uri(marker) not in present:
            first = (rest or shared or [other_meta])[0]
            raise self._taken("folder holds files that another writer wrote", first)
        if other_meta in present and geometry_csv is not None:
            self._refuse_other_geometry(shared, geometry_csv)
        return rest

    def claim(
        self,
        marker: str,
        settings: Mapping[str, Any],
        geometry_csv: bytes,
        notes: Sequence[str] = (),
    ) -> None:
        """Take an empty folder or one's own unfinished rest, never anything else.

        settings: content of the marker; that of a complete set beside this one stays.
        notes: what the events lack, in sentences.
        Raises: RawDataError as `check_free`; StorageError.
        """
        rest = self.check_free(marker, geometry_csv)
        if self._store.stat(self._uri(f"{self._other}_meta.parquet")) is None:
            self._write(marker, json.dumps(settings, indent=1).encode())
        for uri in rest:
            self._store.delete(uri)
        self._write(GEOMETRY_FILE, geometry_csv)
        if notes:
            self._write(NOTES_FILE, json.dumps(notes, indent=1).encode())

    def publish(self, path: Path) -> None:
        """Move a finished batch file from the scratch folder into the set."""
        self._publish(path, self._kind)

    def publish_truth(self, path: Path) -> None:
        """Move the truth of a batch file, of the same name, into the set."""
        self._publish(path, TRUTH_FOLDER)

    def append_meta(self, table: pa.Table) -> None:
        """Add one row group: a reader of one batch file reads only its own."""
        if self._meta is None:
            self._meta = pq.ParquetWriter(self._meta_path, table.schema, **CHECKED)
        self._meta.write_table(table, row_group_size=max(table.num_rows, 1))

    def finish(self) -> None:
        """Publish the meta file: only now the data are complete."""
        assert self._meta is not None, "a set holds at least one batch file"
        self._meta.close()
        self._meta = None
        self._store.upload(self._meta_path, self._uri(f"{self._kind}_meta.parquet"))

    def _publish(self, path: Path, folder: str) -> None:
        self._store.upload(path, self._uri(f"{folder}/{path.name}"))
        path.unlink()

    def _write(self, name: str, data: bytes) -> None:
        self._store.write_bytes(self._uri(name), data)

    def _uri(self, name: str) -> str:
        return f"{self._out_uri}/{name}"

    def _refuse_other_geometry(self, shared: Sequence[str], geometry_csv: bytes) -> None:
        """Refuse to change what belongs to the complete set beside this one."""
        uri = self._uri(GEOMETRY_FILE)
        if uri in shared and self._store.read_bytes(uri) != geometry_csv:
            what = f"folder holds the {self._other} events of another detector"
            raise self._taken(what, uri)

    def _taken(self, what: str, found_uri: str) -> RawDataError:
        return RawDataError(
            what,
            where=self._out_uri,
            found=found_uri.removeprefix(f"{self._out_uri}/"),
            expected="an empty folder",
            remedy=_REMEDY,
        )
