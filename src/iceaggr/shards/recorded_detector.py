"""The detector that a manifest's events were sharded with, and no other."""

from __future__ import annotations

import logging

from iceaggr.detector import Detector
from iceaggr.errors import DetectorError
from iceaggr.events.layout import load_detector
from iceaggr.interfaces import ObjectStore
from iceaggr.shards.manifest import ShardManifest

log = logging.getLogger(__name__)


def load_recorded_detector(store: ObjectStore, manifest: ShardManifest) -> Detector:
    """Load the sensor table of a manifest and compare it with the digest that sharding recorded.

    Raises: DetectorError if the geometry is another one by now, or broken; StorageError.
    """
    detector = load_detector(store, manifest.geometry_uri)
    if manifest.detector_digest is None:
        log.warning(
            "the manifest is of a version that does not say with which geometry its events were"
            " sharded: %s is taken as it is. Shard again to have it compared; shards are reused",
            manifest.geometry_uri,
        )
    elif detector.digest() != manifest.detector_digest:
        raise DetectorError(
            "geometry changed after the events were sharded",
            where=manifest.geometry_uri,
            found=f"{detector.n_sensors} sensors of digest {detector.digest()[:16]}",
            expected=f"digest {manifest.detector_digest[:16]}, as the manifest says",
            remedy="Bring the geometry of before back, or shard again (`iceaggr shard`,"
            " plan_shards) and train on the new shards",
        )
    return detector
