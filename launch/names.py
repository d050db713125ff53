"""Names: of a run, and those that a cluster or its API would refuse or take for another."""

from __future__ import annotations

import re
import time

from iceaggr.errors import ConfigError

# Source: Kubernetes, "Object Names and IDs": RFC 1123 label and subdomain
_LABEL = r"[a-z0-9]([a-z0-9-]*[a-z0-9])?"
_DNS_LABEL = re.compile(_LABEL)
_DNS_SUBDOMAIN = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_MAX_LABEL = 63
_MAX_DISPLAY_NAME = 127
_MAX_SUBDOMAIN = 253
# Source: distribution/reference of the OCI registries: [domain[:port]/]path[:tag][@digest]
_HOST = r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:[0-9]+)?"
_PATH = r"[a-z0-9]+((\.|__?|-+)[a-z0-9]+)*"
_MAX_RUN_NAME = 80
_MAX_EVENTS_NAME = 18
_IMAGE = re.compile(
    rf"({_HOST}/)?{_PATH}(/{_PATH})*(?P<tag>:[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}})?"
    r"(?P<digest>@sha256:[0-9a-f]{64})?"
)


def name_run(preset: str, raw_uri: str, start: str) -> str:
    """Name a run by what tells it apart: preset, events, start of the weights, day and time (UTC).

    The day has no year, so that a list of runs shows the whole name.
    """
    events = re.sub(r"[^A-Za-z0-9_.-]+", "-", raw_uri.rstrip("/").rpartition("/")[2])
    started = time.strftime("%m%d-%H%M%S", time.gmtime())
    return "-".join([preset, events[:_MAX_EVENTS_NAME].strip("-"), start, started])


def check_run_name(name: str, where: str) -> None:
    """Check the name of a run; empty = one is made. Raises: ConfigError.

    It becomes part of file names, too.
    """
    if not name:
        return
    check_display_name(name, where)
    if len(name) > _MAX_RUN_NAME or "/" in name or name.startswith("."):
        raise ConfigError(
            "not a name of a run",
            where=where,
            found=repr(name),
            expected=f"at most {_MAX_RUN_NAME} signs, no / and no dot at its start",
        )


def check_display_name(name: str, where: str) -> None:
    """Check a name that people read: of a schedule or an experiment. Raises: ConfigError.

    An empty one is no small mistake: the API takes it for no filter, that is for all there are. A
    long one would be refused, or cut, by a column of a database: KFP's names of 127 characters are
    the shortest of them, MLflow's experiments have 256.
    """
    is_long = len(name) > _MAX_DISPLAY_NAME
    if not name.strip() or name != name.strip() or not name.isprintable() or is_long:
        raise ConfigError(
            "not a name",
            where=where,
            found=repr(name),
            expected=f"1 to {_MAX_DISPLAY_NAME} printable characters, no blanks at the ends",
        )


def check_namespace(name: str, where: str) -> None:
    """Check the name of a namespace; empty = none given. Raises: ConfigError."""
    if name and not (_DNS_LABEL.fullmatch(name) and len(name) <= _MAX_LABEL):
        raise ConfigError(
            "not the name of a namespace",
            where=where,
            found=repr(name),
            expected="at most 63 of a-z, 0-9 and -, a letter or digit at both ends",
        )


def check_service_account(name: str, where: str) -> None:
    """Check the name of a service account; empty = the installation's. Raises: ConfigError."""
    if name and not (_DNS_SUBDOMAIN.fullmatch(name) and len(name) <= _MAX_SUBDOMAIN):
        raise ConfigError(
            "not the name of a service account",
            where=where,
            found=repr(name),
            expected="at most 253 of a-z, 0-9, - and ., a letter or digit at both ends",
        )


def check_image(image: str, where: str) -> None:
    """Check that an image reference is well formed and does not follow the newest build.

    Raises: ConfigError.
    """
    match = _IMAGE.fullmatch(image)
    if match is None:
        raise ConfigError(
            "not an image reference",
            where=where,
            found=repr(image),
            expected="REGISTRY/NAME:TAG or REGISTRY/NAME@sha256:64 hexadecimal digits",
        )
    tag = (match["tag"] or "").lower()
    if not match["digest"] and (not tag or tag.endswith("latest")):
        raise ConfigError(
            "the tag of the image moves with each build",
            where=where,
            found=repr(image),
            expected="a tag of one version, such as :1.4.2, or a digest",
        )
