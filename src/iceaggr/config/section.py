"""The base of every section of a configuration."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


class Section(BaseModel):
    """Base of every section: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _a_flag_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse `n_epochs: true`, which Python would count as 1."""
        is_number = cls.model_fields[info.field_name or ""].annotation in (int, float)
        if is_number and isinstance(value, bool):
            raise ValueError("a number, not true or false")
        return value
