"""The base of every section of a configuration."""

from __future__ import annotations

from typing import Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


class Section(BaseModel):
    """Base of every section: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _numbers_are_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse `n_epochs: true`, which Python would count as 1, and `n_epochs: "3"`."""
        annotation = cls.model_fields[info.field_name or ""].annotation
        if annotation in (int, float):
            _refuse_what_is_no_number(value, is_whole=annotation is int)
        elif _lists_numbers(annotation) and isinstance(value, list | tuple):
            for item in value:
                _refuse_what_is_no_number(item, is_whole=False)
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _text_can_be_written(cls, value: Any) -> Any:
        """Refuse halves of characters (lone surrogates), which no document could hold."""
        for text in value if isinstance(value, list | tuple) else (value,):
            if isinstance(text, str) and any("\ud800" <= sign <= "\udfff" for sign in text):
                raise ValueError("text of whole characters")
        return value


def _lists_numbers(annotation: Any) -> bool:
    """Tell tuple[float, ...], whose numbers may have bounds, from everything else."""
    item = (*get_args(annotation), None)[0]
    return get_origin(annotation) is tuple and float in (item, getattr(item, "__origin__", None))


def _refuse_what_is_no_number(value: Any, *, is_whole: bool) -> None:
    if isinstance(value, bool):
        raise ValueError("a number, not true or false")
    if isinstance(value, str):
        raise ValueError(f"{'a whole' if is_whole else 'a'} number, not text")
