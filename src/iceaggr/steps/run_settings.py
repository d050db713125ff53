"""What a run was asked for when it began in a folder, and how another request differs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from iceaggr.config import parse_config
from iceaggr.errors import ConfigError
from iceaggr.validation import shown


class RunSettings(BaseModel):
    """What the first step was asked, and the identity of the run."""

    model_config = ConfigDict(frozen=True, extra="forbid", title="settings of a run")

    run_id: str = Field(min_length=1)
    experiment_name: str
    raw_uri: str
    work_uri: str
    config: dict[str, Any]

    def check_same(self, asked: RunSettings, path: Path) -> None:
        """Let a request pass that asks for the same as the run in this file; ids may differ.

        Fields of the configuration that are newer than the run have their default there.
        Raises: ConfigError naming every setting that differs.
        """
        here, there = self._named(str(path)), asked._named("configuration")
        differing = [name for name in there if here.get(name) != there[name]]
        if differing:
            raise ConfigError(
                "folder holds a run of other settings",
                where=str(path),
                found=_list(here, differing),
                expected=_list(there, differing),
                remedy="Give another --folder; with the settings of the run, it goes on",
            )

    def _named(self, where: str) -> dict[str, Any]:
        """Name every setting, those of the configuration `section.field`."""
        named = {"raw_uri": self.raw_uri, "work_uri": self.work_uri}
        named["experiment_name"] = self.experiment_name
        config = parse_config(self.config, where=where).model_dump(mode="json")
        for section, values in config.items():
            fields = values if isinstance(values, dict) else {"": values}
            named |= {f"{section}.{field}".rstrip("."): value for field, value in fields.items()}
        return named


def _list(settings: dict[str, Any], names: list[str]) -> str:
    return ", ".join(f"{name} {shown(settings.get(name))}" for name in names)
