"""What counts as among the raw events, whatever way leads there."""

from __future__ import annotations

import os

import pytest

from iceaggr.errors import ConfigError, StorageError
from iceaggr.storage.apart import lies_within, refuse_among_raw, refuse_work_among_raw


@pytest.mark.parametrize(
    ("uri", "folder_uri", "within"),
    [
        ("s3://b/raw", "s3://b/raw", True),
        ("s3://b/raw/", "s3://b/raw", True),
        ("s3://b/raw/train/x", "s3://b/raw/", True),
        ("s3://b/work", "s3://b", True),
        ("s3://b/work", "s3://b/raw", False),
        ("s3://b/raw-2", "s3://b/raw", False),
        ("s3://b", "s3://b/raw", False),
        ("s3://other/raw", "s3://b/raw", False),
        ("file:///b/raw", "s3://b/raw", False),
        ("file:///b/raw//x/", "file:///b/raw", True),
        ("file:///b/./raw/x", "file://localhost/b/raw/", True),
        ("file:///b/r%61w/x", "file:///b/raw", True),
        ("file:///b/rawer", "file:///b/raw", False),
        ("file:///b", "file:///b/raw", False),
    ],
)
def test_lies_within_compares_whole_parts_of_places(uri, folder_uri, within):
    assert lies_within(uri, folder_uri) == within


def test_lies_within_follows_links(tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "alias").symlink_to("raw")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "raw" / "train").symlink_to("../elsewhere")
    raw_uri = (tmp_path / "raw").as_uri()
    assert lies_within((tmp_path / "alias" / "new").as_uri(), raw_uri)
    assert lies_within((tmp_path / "raw" / "new").as_uri(), (tmp_path / "alias").as_uri())
    # the batch files lie there
    assert lies_within((tmp_path / "elsewhere").as_uri(), raw_uri)
    assert not lies_within((tmp_path / "new").as_uri(), raw_uri)


def test_lies_within_refuses_to_climb():
    with pytest.raises(StorageError, match="URI climbs out of its folder"):
        lies_within("file:///raw/../work", "file:///raw")


def test_work_folder_may_hold_the_raw_folder_but_not_where_it_writes(tmp_path):
    work = tmp_path / "work"
    refuse_work_among_raw((work / "raw").as_uri(), work.as_uri(), "work_uri")
    refuse_work_among_raw("s3://iceaggr/raw/simulated-100", "s3://iceaggr/work", "work_uri")
    with pytest.raises(ConfigError, match=r"\[work_uri\]: found .*work/shards in .*work/shards"):
        refuse_work_among_raw((work / "shards").as_uri(), work.as_uri(), "work_uri")


def test_refusal_says_what_lies_where():
    found = "--work-uri.: found s3://b/raw/w in s3://b/raw, expected a place outside"
    with pytest.raises(ConfigError, match=f"among the raw events .{found}.*give another place"):
        refuse_among_raw("s3://b/raw", "s3://b/raw/w", "--work-uri")


def test_name_that_no_file_can_have_is_compared_all_the_same(tmp_path):
    raw_uri = tmp_path.as_uri()
    assert lies_within(f"{raw_uri}/{'x' * 300}", raw_uri)
    assert not lies_within(f"file:///{'x' * 300}", raw_uri)
    assert os.listdir(tmp_path) == []
