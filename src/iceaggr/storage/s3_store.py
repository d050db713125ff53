"""Object storage on S3 and what speaks its protocol (SeaweedFS, MinIO, Ceph)."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    IncompleteReadError,
    ResponseStreamingError,
)
from urllib3.exceptions import HTTPError

from iceaggr.errors import StorageError
from iceaggr.interfaces import Content, StoredObject, pieces_of
from iceaggr.storage.file_store import as_storage_error, partial_file, replace_durably
from iceaggr.storage.s3_client import S3Client
from iceaggr.storage.s3_errors import error_code, explain, is_missing, is_wordless, missing_bucket
from iceaggr.storage.uris import bad_uri, bucket_and_key

if TYPE_CHECKING:
    from typing_extensions import Buffer


# Taking the body of an answer: all of it, in time, and compared with its tag where that is a hash.
#
# S3 does not protect a body on its way beyond what TCP and TLS do. But the tag (ETag) of an object
# that was written in one request is the MD5 of its content at most services, so a whole read can be
# compared with it. Objects encrypted with keys of KMS or of the client and those written in parts
# have tags of another kind, and some services make up all their tags. So tags of a bucket count as
# hashes after one of them has matched; before that, content is accepted if it arrives twice alike.

SLOWEST_BYTES_PER_S = 16 << 10
"""A body that comes slower than this for longer than PATIENCE_S is asked for again."""
PATIENCE_S = 60.0
_CHUNK_BYTES = 1 << 20
_MD5 = re.compile(r"[0-9a-f]{32}")


class BadBodyError(ConnectionError):
    """The body came too slowly, or is not what its tag says; the next try may be better."""


def read_body(answer: Mapping[str, Any]) -> bytes:
    """Read the whole body of an answer.

    Raises: IncompleteReadError, ResponseStreamingError; BadBodyError if it merely trickles.
    """
    n_expected = int(answer["ContentLength"])
    latest = time.monotonic() + PATIENCE_S + n_expected / SLOWEST_BYTES_PER_S
    chunks, n_read = [], 0
    with closing(answer["Body"]) as body:  # not the body itself: that enters its raw stream
        # read() would wait for all bytes asked for, and each one that comes resets its time-out
        stream = body._raw_stream
        try:
            while chunk := stream.read1(_CHUNK_BYTES):
                chunks.append(chunk)
                n_read += len(chunk)
                if time.monotonic() > latest:
                    raise BadBodyError(
                        f"{n_read} of {n_expected} bytes came in"
                        f" {PATIENCE_S + n_expected / SLOWEST_BYTES_PER_S:.0f} s"
                    )
        except HTTPError as error:
            raise ResponseStreamingError(error=error) from error
    if n_read != n_expected:
        raise IncompleteReadError(actual_bytes=n_read, expected_bytes=n_expected)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


class TagChecks:
    """Compares whole contents with their tags; shared by threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._hashed_buckets: set[str] = set()
        self._doubtful: dict[tuple[str, str], str] = {}

    def check(self, where: tuple[str, str], answer: Mapping[str, Any], md5: str) -> None:
        """Accept the content of an object by its MD5, in hex. where: bucket and key.

        Raises: BadBodyError if the tag is a hash, but of something else.
        """
        tag = str(answer.get("ETag", "")).strip('"')
        if not _MD5.fullmatch(tag) or _is_encrypted(answer):
            return
        with self._lock:
            before = self._doubtful.pop(where, "")
            if md5 == tag:
                self._hashed_buckets.add(where[0])
                return
            if where[0] not in self._hashed_buckets and before == md5:
                return
            self._doubtful[where] = md5
        raise BadBodyError(f"content of MD5 {md5} came under the tag {tag}")


def md5_of(data: bytes) -> str:
    """Hash content as a tag does: 32 hex digits."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _is_encrypted(answer: Mapping[str, Any]) -> bool:
    return "kms" in str(answer.get("ServerSideEncryption", "")) or bool(
        answer.get("SSECustomerAlgorithm")
    )


# A seekable file over ranged reads: only what is asked for crosses the network.

READ_AHEAD_BYTES = 256 << 10


class RangedReader(io.RawIOBase):
    """Binary file of known size whose bytes come from `fetch(first, n_bytes)`.

    Small reads share one request of READ_AHEAD_BYTES; a read near the end takes the whole tail,
    because readers of Parquet and Arrow look there first. Every read returns all bytes asked for
    unless the file ends, so no caller meets a short read. One thread at a time.
    """

    def __init__(self, fetch: Callable[[int, int], bytes], n_bytes: int, name: str) -> None:
        self.name = name
        self._fetch = fetch
        self._n_bytes = n_bytes
        self._position = 0
        self._first_kept = 0
        self._kept = b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move, without transferring anything."""
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._n_bytes}[whence]
        if origin + offset < 0:
            raise ValueError(f"seek before the start of {self.name}: {origin + offset}")
        self._position = origin + offset
        return self._position

    def readinto(self, buffer: Buffer) -> int:
        target = memoryview(buffer).cast("B")
        data = self._bytes_at(self._position, len(target))
        target[: len(data)] = data
        self._position += len(data)
        return len(data)

    def readall(self) -> bytes:
        """Read from the position to the end in one request."""
        data = bytes(self._bytes_at(self._position, self._n_bytes - self._position))
        self._position += len(data)
        return data

    def _bytes_at(self, first: int, n_wanted: int) -> memoryview:
        n_wanted = min(n_wanted, self._n_bytes - first)
        if n_wanted <= 0:
            return memoryview(b"")
        kept_from = first - self._first_kept
        if kept_from < 0 or kept_from + n_wanted > len(self._kept):
            if n_wanted >= READ_AHEAD_BYTES:
                return memoryview(self._fetch(first, n_wanted))
            self._first_kept = min(first, max(0, self._n_bytes - READ_AHEAD_BYTES))
            n_ahead = min(READ_AHEAD_BYTES, self._n_bytes - self._first_kept)
            self._kept = self._fetch(self._first_kept, n_ahead)
            kept_from = first - self._first_kept
        return memoryview(self._kept)[kept_from : kept_from + n_wanted]


PART_BYTES = 16 << 20
_MAX_PARTS = 9_000
_TAKEN = {"PreconditionFailed", "412"}
_EXISTS = {"BucketAlreadyExists", "BucketAlreadyOwnedByYou"}


class S3Store:
    """ObjectStore over `s3://bucket/key`."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._s3 = S3Client(environment)
        self._known_buckets: set[str] = set()
        self._tags = TagChecks()

    def list(self, prefix_uri: str) -> list[StoredObject]:
        """List all objects inside a folder, however many pages that takes, sorted by URI."""
        bucket, prefix = bucket_and_key(prefix_uri)
        prefix = prefix.rstrip("/") + "/" if prefix.strip("/") else ""
        query: dict[str, str] = {"Bucket": bucket, "Prefix": prefix}
        found: list[StoredObject] = []
        while True:
            page = self._s3.call(prefix_uri, lambda s3: s3.list_objects_v2(**query))
            found += [
                StoredObject(f"s3://{bucket}/{entry['Key']}", entry["Size"], _etag(entry))
                for entry in page.get("Contents", [])
                if not entry["Key"].endswith("/")  # a folder mark, not an object
            ]
            if not page.get("IsTruncated"):
                return sorted(found, key=lambda entry: entry.uri)
            query["ContinuationToken"] = page["NextContinuationToken"]

    def stat(self, uri: str) -> StoredObject | None:
        """Describe one object, or None. Raises: StorageError if its very bucket is missing."""
        where = _location(uri)
        try:
            head = self._s3.attempt(lambda s3: s3.head_object(**where))
        except (ClientError, BotoCoreError, OSError) as error:
            if not is_missing(error):
                raise self._worded(error, uri, lambda s3: _read_a_byte(s3, where)) from error
            self._check_bucket(uri)
            return None
        return StoredObject(uri, head["ContentLength"], _etag(head))

    def read_bytes(self, uri: str, compare_tag: bool = True) -> bytes:
        """Read a whole object; a body that breaks off or arrives damaged is asked for again.

        compare_tag: False spares the MD5, which costs more than the transfer from a near store.
        """
        where = _location(uri)

        def get(s3: Any) -> bytes:
            answer = s3.get_object(**where)
            data = self._body(answer)
            if compare_tag:
                self._tags.check((where["Bucket"], where["Key"]), answer, md5_of(data))
            return data

        return self._s3.call(uri, get)

    def write_bytes(self, uri: str, data: Content) -> None:
        """Write a whole object; the store verifies its MD5 before it becomes visible."""
        where = _location(uri)
        # boto3 takes bytes only
        body = data if isinstance(data, bytes) else b"".join(pieces_of(data))
        md5 = _md5(body)
        self._s3.call(uri, lambda s3: s3.put_object(Body=body, ContentMD5=md5, **where))

    def write_bytes_if_absent(self, uri: str, data: bytes) -> bool:
        """Write only if nothing is there; False when another writer was first.

        When an answer was lost and the repeated request finds the key taken, the content decides
        whether the first try had succeeded: writers that compete should write distinct bytes.
        """
        where = _location(uri)
        n_sent = 0

        def put(s3: Any) -> Any:
            nonlocal n_sent
            n_sent += 1
            return s3.put_object(Body=data, ContentMD5=_md5(data), IfNoneMatch="*", **where)

        try:
            self._s3.attempt(put)
        except (ClientError, BotoCoreError, OSError) as error:
            if error_code(error) not in _TAKEN:
                raise explain(error, uri, self._s3.endpoint) from error
            reply = cast(ClientError, error).response.get("ResponseMetadata", {})
            repeated = n_sent > 1 or reply.get("RetryAttempts", 0) > 0
            return repeated and self.read_bytes(uri) == data
        return True

    def open_input(self, uri: str) -> BinaryIO:
        """Open an object for ranged reads; replaced meanwhile, it fails instead of mixing both."""
        described = self._described(uri)
        where = _location(uri)

        def fetch(first: int, n_bytes: int) -> bytes:
            span = {"Range": f"bytes={first}-{first + n_bytes - 1}", "IfMatch": described.etag}
            data = self._s3.call(uri, lambda s3: self._body(s3.get_object(**where, **span)))
            if len(data) != n_bytes:
                raise StorageError(
                    "object store sent the wrong range",
                    where=uri,
                    found=f"{len(data)} bytes",
                    expected=f"{n_bytes} bytes from byte {first}",
                    remedy="Check that the store supports ranged reads",
                )
            return data

        return cast(BinaryIO, RangedReader(fetch, described.n_bytes, uri))

    def upload(self, path: Path, uri: str) -> None:
        """Copy a local file; above 16 MiB in parts, which appear as one object at the end."""
        with as_storage_error(str(path), "cannot read the file to upload"):
            n_bytes = path.stat().st_size
            if n_bytes <= PART_BYTES:
                self.write_bytes(uri, path.read_bytes())
            else:
                self._upload_parts(path, uri, max(PART_BYTES, -(-n_bytes // _MAX_PARTS)))
        stored = self._described(uri).n_bytes
        if stored != n_bytes:
            raise StorageError(
                "upload is incomplete",
                where=uri,
                found=f"{stored} bytes",
                expected=f"{n_bytes} bytes",
                remedy="Check that nobody else writes this URI, then run the step again",
            )

    def _upload_parts(self, path: Path, uri: str, part_bytes: int) -> None:
        where = _location(uri)
        upload = self._s3.call(uri, lambda s3: s3.create_multipart_upload(**where))
        where["UploadId"] = upload["UploadId"]
        parts: list[dict[str, Any]] = []
        try:
            for number, part in enumerate(_parts(path, part_bytes), start=1):
                request = {**where, "PartNumber": number, "Body": part, "ContentMD5": _md5(part)}
                answer = self._s3.call(uri, partial(_upload_part, request))
                parts.append({"PartNumber": number, "ETag": answer["ETag"]})
            finish = {**where, "MultipartUpload": {"Parts": parts}}
            self._s3.call(uri, lambda s3: s3.complete_multipart_upload(**finish))
        except BaseException:
            with suppress(StorageError):  # the first error is the one to tell
                self._s3.call(uri, lambda s3: s3.abort_multipart_upload(**where))
            raise

    def download(self, uri: str, path: Path) -> None:
        """Copy an object to a local file in bounded memory; up to 16 MiB its tag is checked."""
        with (
            as_storage_error(str(path), f"cannot write the download of {uri}"),
            partial_file(path) as unfinished,
            unfinished.open("wb") as writer,
        ):
            if self._described(uri).n_bytes <= PART_BYTES:
                writer.write(self.read_bytes(uri))
            else:
                with self.open_input(uri) as reader:
                    shutil.copyfileobj(reader, writer, PART_BYTES)
            writer.flush()
            replace_durably(unfinished, path)

    def delete(self, uri: str) -> None:
        where = _location(uri)
        self._s3.call(uri, lambda s3: s3.delete_object(**where))

    def ensure_bucket(self, uri: str) -> None:
        bucket, _ = bucket_and_key(uri)
        try:
            self._check_bucket(uri)
        except StorageError:
            try:
                self._s3.attempt(lambda s3: s3.create_bucket(Bucket=bucket))
            except (ClientError, BotoCoreError, OSError) as error:
                if error_code(error) not in _EXISTS:
                    raise explain(error, uri, self._s3.endpoint) from error

    def _described(self, uri: str) -> StoredObject:
        described = self.stat(uri)
        if described is None:
            missing = ClientError({"Error": {"Code": "NoSuchKey"}}, "HeadObject")
            raise explain(missing, uri, self._s3.endpoint)
        return described

    def _check_bucket(self, uri: str) -> None:
        bucket, _ = bucket_and_key(uri)
        if bucket in self._known_buckets:
            return
        try:
            self._s3.attempt(lambda s3: s3.head_bucket(Bucket=bucket))
        except (ClientError, BotoCoreError, OSError) as error:
            if is_missing(error):
                raise missing_bucket(uri, self._s3.endpoint) from None
            raise self._worded(
                error, uri, lambda s3: s3.list_objects_v2(Bucket=bucket, MaxKeys=1)
            ) from error
        self._known_buckets.add(bucket)

    def _worded(self, error: Exception, uri: str, ask: Callable[[Any], object]) -> StorageError:
        """Explain a refused HEAD request, which has no room for a reason, by that of another."""
        if is_wordless(error):
            try:
                self._s3.attempt(ask)
            except (ClientError, BotoCoreError, OSError) as reason:
                error = reason
        return explain(error, uri, self._s3.endpoint)

    def _body(self, answer: dict[str, Any]) -> bytes:
        self._s3.note_answer()
        return read_body(answer)


def _location(uri: str) -> dict[str, Any]:
    bucket, key = bucket_and_key(uri)
    if not key:
        raise bad_uri(uri)
    return {"Bucket": bucket, "Key": key}


def _read_a_byte(s3: Any, where: dict[str, Any]) -> None:
    s3.get_object(Range="bytes=0-0", **where)["Body"].close()


def _upload_part(request: dict[str, Any], s3: Any) -> Any:
    return s3.upload_part(**request)


def _parts(path: Path, part_bytes: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        while part := file.read(part_bytes):
            yield part


def _md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


def _etag(entry: dict[str, Any]) -> str:
    return str(entry["ETag"]).strip('"')
