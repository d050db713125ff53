"""What pydantic refuses, in our words: which field, what was found, what is expected, which hint.

Every document that comes from outside (configuration, manifest, plan, pointer) is a pydantic model,
read by `read_model`: its owner words the error, with the parts that are found here.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import reprlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from iceaggr.interfaces import ObjectStore

# Reading what has a known hash: what arrives damaged is read again before it is called damaged.

logger = logging.getLogger(__name__)

N_READS = 3
"""Damage on the way strikes at random, so a third equal mishap means the stored object itself."""


def sha256_of(data: bytes) -> str:
    """Hash content: 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def read_verified(
    store: ObjectStore, uri: str, expected: str, hash_of: Callable[[bytes], str] = sha256_of
) -> tuple[bytes, str]:
    """Read an object, up to three times until its hash is the expected one.

    Returns the content read last and its hash: the caller words the error.
    Raises: StorageError.
    """
    for n_read in range(1, N_READS + 1):
        data = store.read_bytes(uri, compare_tag=False)
        found = hash_of(data)
        if found == expected:
            break
        if n_read < N_READS:
            logger.warning("%s has hash %s, not %s: reading it again", uri, found, expected)
    return data, found


_EXPECTED = {
    "missing": "a value",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number of 64 bits",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "string_too_short": "text",
    "string_pattern_mismatch": "text of the form {pattern}",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "names with values",
    "model_type": "names with values",
    "model_attributes_type": "names with values",
    "dataclass_type": "names with values",
    "unexpected_keyword_argument": "only the fields of this version",
    "literal_error": "{expected}",
    "greater_than": "more than {gt}",
    "greater_than_equal": "{ge} or more",
    "less_than": "less than {lt}",
    "less_than_equal": "{le} or less",
    "json_invalid": "JSON",
    "value_error": "{error}",
}


@dataclass(frozen=True)
class Problem:
    """The first thing that is wrong with a document.

    field: dotted name, empty for the whole document.  hint: "Did you mean ...?", or empty.
    n_more: further things that are wrong
    """

    field: str
    found: str
    expected: str
    is_unknown_field: bool
    hint: str
    n_more: int

    @property
    def found_in_field(self) -> str:
        """Name the field with what was found in it."""
        return f"{self.field}: {self.found}" if self.field else self.found


Document = TypeVar("Document", bound=BaseModel)


def read_model(
    kind: type[Document],
    document: Any,
    refused: Callable[[Problem], Exception],
) -> Document:
    """Check a document. document: JSON as bytes or text, or what was read from it.

    Raises: what `refused` makes of the first thing that is wrong.
    """
    try:
        if isinstance(document, bytes | str):
            return kind.model_validate_json(document)
        return kind.model_validate(document)
    except ValidationError as error:
        raise refused(first_problem(error, kind)) from None


def read_json_object(text: bytes | str, refused: Callable[[str], Exception]) -> dict[str, Any]:
    """Read names with values. Raises: what `refused` makes of what was found instead."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise refused(str(error)) from None
    if not isinstance(document, dict):
        raise refused(shown(document))
    return document


def first_problem(error: ValidationError, kind: type[BaseModel]) -> Problem:
    """Describe the first refusal. kind: the model that was asked for."""
    errors = error.errors(include_url=False)
    first = errors[0]
    field = ".".join(str(part) for part in first["loc"])
    is_unknown = first["type"] == "extra_forbidden"
    is_missing = first["type"] == "missing" or first.get("input") is None
    if is_unknown:
        names = _fields_at(kind, first["loc"][:-1])
        expected, hint = f"one of {', '.join(names)}", _field_hint(kind, first["loc"], names)
    else:
        expected, hint = _expected(first), _value_hint(first)
    return Problem(
        field=field,
        found="nothing" if is_missing else shown(first["input"]),
        expected=expected,
        is_unknown_field=is_unknown,
        hint=hint,
        n_more=len(errors) - 1,
    )


def flattened(document: Any, separator: str = ".", above: str = "") -> dict[str, Any]:
    """Give the values of nested names by their joined names; a list is one value."""
    if not isinstance(document, Mapping):
        return {above: document}
    flat: dict[str, Any] = {}
    for name, value in document.items():
        flat |= flattened(value, separator, f"{above}{separator}{name}" if above else str(name))
    return flat


def shown(value: Any) -> str:
    """Show a value from outside in a few words, however large or deep it is."""
    brief = reprlib.Repr()
    brief.maxstring = brief.maxother = brief.maxlong = 100
    brief.maxlevel = 3
    text = brief.repr(value)
    return text if len(text) <= 200 else f"{text[:197]}..."


def _expected(first: Any) -> str:
    template = _EXPECTED.get(first["type"])
    if template is None:
        return str(first["msg"]).removeprefix("Input should be ")
    return template.format(**first.get("ctx", {}))


def _value_hint(first: Any) -> str:
    if first["type"] != "literal_error":
        return ""
    allowed = [
        word.strip("'") for word in first["ctx"]["expected"].replace(" or ", ", ").split(", ")
    ]
    return _meant(difflib.get_close_matches(str(first.get("input")), allowed, 1))


def _field_hint(kind: type[BaseModel], loc: tuple[int | str, ...], names: list[str]) -> str:
    """Look for a field of that name nearby, then in the other sections."""
    section, name = ".".join(map(str, loc[:-1])), str(loc[-1])
    prefix = f"{section}." if section else ""
    close = [prefix + match for match in difflib.get_close_matches(name, names, 1)]
    elsewhere = {path.rpartition(".")[2]: path for path in _paths(kind)}
    close = close or [elsewhere[m] for m in difflib.get_close_matches(name, elsewhere, 1)]
    return _meant(close)


def _meant(close: list[str]) -> str:
    return f"Did you mean {close[0]}?" if close else ""


def _fields_at(kind: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    here: Any = kind
    for part in loc:
        if isinstance(part, str) and part in getattr(here, "model_fields", {}):
            here = here.model_fields[part].annotation
        else:  # an item of a list, or of names with values
            here = next((a for a in get_args(here) if hasattr(a, "model_fields")), here)
    return list(getattr(here, "model_fields", {}))


def _paths(kind: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in kind.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            yield from _paths(section, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
