"""What travels to the stand-in: read with the official client's models, and nothing else."""

from __future__ import annotations

import json
from email.parser import BytesParser
from types import SimpleNamespace

import kfp_server_api as api
import yaml

from tests.stand_in import HttpError

CLIENT = api.ApiClient(api.Configuration())


def strict(kind: str, body: bytes):
    """Read a body as one of the client's models; a field that it does not have is an error."""
    document = json.loads(body)
    known = set(getattr(api, kind).attribute_map.values())
    if unknown := set(document) - known:
        raise HttpError(400, f"unknown fields {sorted(unknown)} of {kind}")
    return CLIENT.deserialize(SimpleNamespace(data=body.decode()), kind)


def uploaded_file(content_type: str, body: bytes) -> bytes:
    message = BytesParser().parsebytes(f"Content-Type: {content_type}\r\n\r\n".encode() + body)
    return next(p.get_payload(decode=True) for p in message.get_payload() if p.get_filename())


def check_package(body: bytes) -> None:
    documents = list(yaml.safe_load_all(body))
    if "pipelineInfo" not in documents[0] or "platforms" not in documents[1]:
        raise HttpError(400, "not a compiled pipeline")
