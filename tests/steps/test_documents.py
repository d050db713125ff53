"""Documents of the run and files that a user names: whole or absent, refused early, in words."""

import errno
import hashlib
import os
from pathlib import Path

import pytest

from iceaggr.errors import ConfigError, EvaluationError, IceaggrError
from iceaggr.steps.documents import (
    EvaluationPointer,
    ModelPointer,
    check_target_file,
    holds,
    parse_document,
    read_document,
    read_file,
    write_document,
)
from iceaggr.storage import open_store


def headline(path: Path, content: bytes) -> EvaluationPointer:
    """Headline of an evaluation of model a... on data b..., with a table of this content."""
    return EvaluationPointer(
        model_digest="a" * 64,
        data_digest="b" * 64,
        events_uri=path.as_uri(),
        events_sha256=hashlib.sha256(content).hexdigest(),
        report_uri="file:///r",
        n_events=0,
        table=(),
    )


def test_evaluation_is_of_one_model_and_its_data(tmp_path: Path) -> None:
    evaluated = headline(tmp_path / "events.parquet", b"")
    evaluated.check_subject("file:///m", "a" * 64, "b" * 64)
    with pytest.raises(
        EvaluationError, match=r"of another model \[.*file:///m\]: found model a{16} .*model c{16}"
    ):
        evaluated.check_subject("file:///m", "c" * 64, "b" * 64)
    with pytest.raises(EvaluationError, match=r"of other data .*data b{16} .*evaluate_model again"):
        evaluated.check_subject("file:///m", "a" * 64, "c" * 64)


def test_table_of_events_is_the_evaluated_one(tmp_path: Path) -> None:
    path = tmp_path / "events.parquet"
    path.write_bytes(b"table")
    assert headline(path, b"table").read_events(open_store()) == b"table"
    with pytest.raises(EvaluationError, match=r"changed since .*events\.parquet.*expected sha256"):
        headline(path, b"other").read_events(open_store())


def test_headline_without_digests_is_of_an_evaluation_before(tmp_path: Path) -> None:
    document = headline(tmp_path / "e", b"").model_dump_json(exclude={"model_digest"})
    with pytest.raises(IceaggrError, match=r"found model_digest: nothing.*writes it again"):
        parse_document(EvaluationPointer, document.encode(), "evaluation.json")


def test_document_is_written_whole_over_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "verdict.md"
    for text in ("first", "größer ☃"):
        write_document(path, text)
        assert path.read_text(encoding="utf-8") == text
    assert [found.name for found in tmp_path.iterdir()] == ["verdict.md"]


def test_document_of_before_stays_when_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "manifest.json"
    write_document(path, "whole")

    def half(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OSError, match=r"No space left on device: .*manifest\.json"):
        write_document(path, "another")
    assert path.read_text() == "whole"
    assert [found.name for found in tmp_path.iterdir()] == ["manifest.json"]


def test_target_file_may_be_new_or_replaced_and_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "old.csv").write_text("old")
    for name in ("old.csv", "new.csv", "x" * 251 + ".csv"):
        check_target_file(tmp_path / name, "--output", lambda path: path.read_text() == "old")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        (".", "a folder"),
        ("pipe", "a device, pipe or socket"),
        ("link", "a device, pipe or socket"),
        ("x" * 258, "File name too long"),
    ],
)
def test_target_that_cannot_be_written_is_refused(tmp_path: Path, name: str, found: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/null")
    with pytest.raises(ConfigError, match=rf"cannot write here \[--page .*\]: found {found}"):
        check_target_file(tmp_path / name, "--page", holds("x"))


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder without files")
def test_target_in_a_folder_that_takes_no_files_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"cannot write here .* \(a file was tried in /proc\)"):
        check_target_file(Path("/proc/x.parquet"), "--output", holds("x"))


def test_target_in_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"folder does not exist \[--output .*\]: found .*/no"):
        check_target_file(tmp_path / "no" / "x.csv", "--output", holds("x"))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (ModelPointer, "pointer to a trained model"),
        (EvaluationPointer, "headline of an evaluation"),
    ],
)
def test_missing_or_foreign_document_is_named_for_people(tmp_path: Path, kind, words: str) -> None:
    with pytest.raises(IceaggrError, match=f"^{words} not found .* found no such file"):
        read_document(kind, tmp_path / "document.json")
    with pytest.raises(IceaggrError, match=f"^not the {words} .* found "):
        parse_document(kind, b"[]", "document.json")


@pytest.mark.parametrize(
    ("name", "found"), [("folder", "a folder"), ("pipe", "a device"), ("y" * 300, "File name too")]
)
def test_what_is_no_file_is_no_document(tmp_path: Path, name: str, found: str) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(IceaggrError, match=rf"^manifest not found .*{name}\]: found {found}"):
        read_file(tmp_path / name, "manifest", "Write it")


def test_target_that_is_something_else_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "notes.html"
    path.write_text("my notes")
    with pytest.raises(ConfigError, match=r"something else has this name \[--page .*8 bytes"):
        check_target_file(path, "--page", holds("<h1>Paired comparison</h1>"))
    path.write_text("<h1>Paired comparison</h1>")
    check_target_file(path, "--page", holds("<h1>Paired comparison</h1>"))
