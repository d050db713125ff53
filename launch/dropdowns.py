"""Dropdowns of the run form: which values an enumerated parameter may have.

The backend refuses others and the UI shows a list, both from `literals` in the compiled graph. The
SDK cannot write these yet, so they are added after compiling. The local runner ignores them: what
the steps are given, they check themselves.
"""

from __future__ import annotations

from typing import Any

from iceaggr.errors import ConfigError

DROPDOWNS: dict[str, tuple[str, ...]] = {
    "train_gpu_count": ("0", "1", "2", "4", "8"),
    "train_nodes": ("1", "2", "4", "8"),
}


def add_dropdowns(root: dict[str, Any], dropdowns: dict[str, tuple[str, ...]]) -> None:
    """Write the allowed values into the root of a compiled graph.

    Raises: ConfigError if the graph lacks such a text parameter or its default is not allowed.
    """
    parameters = root.get("inputDefinitions", {}).get("parameters", {})
    for name, allowed in dropdowns.items():
        parameter = parameters.get(name, {})
        if parameter.get("parameterType") != "STRING":
            raise ConfigError(
                "a dropdown needs a text parameter",
                where=name,
                found=parameter.get("parameterType", "no such parameter"),
                expected="STRING",
            )
        check_allowed(name, parameter.get("defaultValue"), allowed, where="default")
        parameter["literals"] = list(allowed)


def check_allowed(name: str, value: Any, allowed: tuple[str, ...], where: str) -> None:
    """Check one value. Raises: ConfigError naming the allowed ones."""
    if value not in allowed:
        raise ConfigError(
            f"{name} has another value than allowed",
            where=where,
            found=repr(value),
            expected=f"one of {', '.join(map(repr, allowed))}",
        )
