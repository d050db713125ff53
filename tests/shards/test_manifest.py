"""Manifests: what a data set's digest covers, which versions are read, what may be merged."""

import json

import pytest

from iceaggr.detector import icecube86, parse_geometry
from iceaggr.errors import ShardError
from iceaggr.shards.manifest import ShardManifest, merge_manifests, parse_manifest
from iceaggr.shards.sketching import sketch_events
from tests.shards.dom_events_builder import random_dom_events
from tests.shards.shard_manifest_builder import manifest_of

OTHER = parse_geometry("sensor_id,x,y,z\n0,0,0,0\n1,0,0,100\n", "two sensors").digest()


@pytest.fixture(scope="module")
def manifest() -> ShardManifest:
    return manifest_of({"train": sketch_events(random_dom_events(20, seed=0), icecube86())})


def of_version_before(manifest: ShardManifest) -> ShardManifest:
    return manifest.model_copy(update={"format_version": 2, "detector_digest": None})


def test_digest_differs_for_another_detector_and_not_for_another_place(manifest):
    other = manifest.model_copy(update={"detector_digest": OTHER})
    assert other.digest() != manifest.digest()
    moved = manifest.model_copy(update={"geometry_uri": "file:///moved.csv"})
    assert moved.digest() == manifest.digest()


def test_manifest_of_the_version_before_is_read_with_its_own_seal_and_digest(manifest):
    before = of_version_before(manifest)
    text = before.to_json()
    assert "detector_digest" not in json.loads(text)
    assert parse_manifest(text, "here") == before
    assert parse_manifest(text, "here").to_json() == text
    assert before.digest() != manifest.digest()


@pytest.mark.parametrize(
    ("version", "digest", "found"),
    [
        (3, None, "version 3 without detector_digest"),
        (2, OTHER, "version 2 with detector_digest"),
    ],
)
def test_manifest_whose_version_and_detector_disagree_is_refused(manifest, version, digest, found):
    wrong = manifest.model_copy(update={"format_version": version, "detector_digest": digest})
    with pytest.raises(ShardError, match=rf"damaged shard manifest \[here\]: found {found}"):
        parse_manifest(wrong.to_json(), "here")


def test_merge_manifests_refuses_units_of_different_geometry(manifest):
    other = manifest.model_copy(update={"detector_digest": OTHER})
    with pytest.raises(ShardError, match="sharded differently") as caught:
        merge_manifests([manifest, other])
    assert caught.value.found == f"detector_digest '{OTHER}'"
    assert caught.value.expected == f"detector_digest '{icecube86().digest()}'"
    assert "one geometry" in caught.value.remedy
