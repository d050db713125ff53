"""The raw events of a prediction, judged on their way: no directions for data that are wrong.

A model answers whatever it is asked. So each raw file is held to what sharding and statistics ask
of training data, in the same words, and to the normalisation that the model carries. A file too
small to be judged alone is judged with the other small ones.
"""

from __future__ import annotations

from collections.abc import Iterator

from iceaggr.config import DataConfig
from iceaggr.errors import RawDataError
from iceaggr.events.cleaning import Account, merge_accounts
from iceaggr.events.dom_events import DomEvents
from iceaggr.events.layout import RawLayout
from iceaggr.events.reading import check_sensor_width, read_raw_file
from iceaggr.interfaces import ObjectStore
from iceaggr.models.bundle import LoadedModel
from iceaggr.normalization.likeness import refuse_unlike_training
from iceaggr.shards.plausibility import (
    doubtful_times,
    refuse_many_rejected,
    refuse_times_of_another_unit,
)
from iceaggr.shards.sketches import Sketch
from iceaggr.shards.sketching import empty_sketch, sketch_events

MIN_EVENTS_JUDGED = 30
"""Among fewer, three odd events are a tenth, and medians and spreads say little."""
_MEND = "mend the file"


class PredictionInput:
    """Reads the files of a layout for a model, counts what is rejected, judges what is kept.

    rejected_event_ids: of all files; whoever writes them down may clear the list.
    """

    def __init__(
        self, store: ObjectStore, layout: RawLayout, loaded: LoadedModel, accept_doubtful: bool
    ) -> None:
        """accept_doubtful: what would be refused is kept in mind as a doubt."""
        self.rejected_event_ids: list[int] = []
        self._store, self._layout, self._loaded = store, layout, loaded
        self._accept_doubtful = accept_doubtful
        data = loaded.experiment.data if loaded.experiment else DataConfig()
        self._max_rejected_share = data.max_rejected_share
        self._accounts: list[Account] = []
        self._doubts: list[str] = []
        self._sketch = empty_sketch(loaded.detector)

    def account(self) -> Account:
        """Add up what was read, kept and rejected so far."""
        return merge_accounts(self._accounts)

    def chunks(self) -> Iterator[DomEvents]:
        """Read all files; whoever takes the last chunk knows that nothing was refused.

        Raises: RawDataError, also for a file that is wrong as a whole; DetectorError, StorageError.
        """
        layout, detector = self._layout, self._loaded.detector
        check_sensor_width(detector, layout.geometry_uri)
        small, small_sketch = [], empty_sketch(detector)
        for file in layout.files:
            account = Account(rejected_event_ids=self.rejected_event_ids)
            sketch = empty_sketch(detector)
            self._accounts.append(account)
            for chunk in read_raw_file(self._store, layout, file, detector, account):
                sketch = sketch.merge(sketch_events(chunk, detector))
                yield chunk
            self._sketch = self._sketch.merge(sketch)
            if account.n_events_in >= MIN_EVENTS_JUDGED:
                self._judge(account, sketch, file.stored.uri)
            else:
                small.append(account)
                small_sketch = small_sketch.merge(sketch)
        where = f"{layout.raw_uri}/{layout.folder}/, its {len(small):,} small files together"
        self._judge(merge_accounts(small), small_sketch, where)

    def doubts(self) -> tuple[str, ...]:
        """Say what is odd about the events that were read, for the last line of the step."""
        odd = doubtful_times(self._sketch, self._loaded.detector)
        n_more = len(self._doubts) - 1
        more = [f"and {n_more:,} more such files"] if n_more > 0 else []
        return (*self._doubts[:1], *more, *([odd] if odd else []))

    def _judge(self, account: Account, sketch: Sketch, where: str) -> None:
        """Refuse a file that is wrong as a whole. Raises: RawDataError naming it."""
        if account.n_events_in < MIN_EVENTS_JUDGED:
            return
        try:
            for kind in ("events", "pulses"):
                refuse_many_rejected(account, kind, self._max_rejected_share, where, _MEND)
            if sketch.n_events >= MIN_EVENTS_JUDGED:
                refuse_times_of_another_unit({"train": sketch}, self._loaded.detector)
                refuse_unlike_training(sketch, self._loaded.model.normalization, where)
        except RawDataError as error:
            if not self._accept_doubtful:
                raise RawDataError(
                    error.what,
                    where=error.where if where in str(error.where) else f"{where} time",
                    found=error.found,
                    expected=error.expected,
                    remedy=f"{error.remedy}; nothing was written, and --accept-doubtful predicts"
                    " all the same",
                ) from None
            self._doubts.append(f"{error.what} [{where}], {error.found}")
