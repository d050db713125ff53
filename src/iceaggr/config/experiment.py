"""The whole configuration, and reading it from a file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import field_validator

from iceaggr.config import sections
from iceaggr.errors import ConfigError
from iceaggr.service_settings import without_credentials
from iceaggr.validation import Problem, read_model, shown


class ExperimentConfig(sections.Section):
    """Everything that a run depends on besides its data."""

    name: str = "experiment"
    """Shown in MLflow, in reports and in names of files; a file without it lends its own name."""
    data: sections.DataConfig = sections.DataConfig()
    normalization: sections.NormalizationConfig = sections.NormalizationConfig()
    batches: sections.BatchConfig = sections.BatchConfig()
    model: sections.ModelConfig = sections.ModelConfig()
    loss: sections.LossConfig = sections.LossConfig()
    training: sections.TrainingConfig = sections.TrainingConfig()
    learning_check: sections.LearningCheckConfig = sections.LearningCheckConfig()
    evaluation: sections.EvaluationConfig = sections.EvaluationConfig()
    promotion: sections.PromotionConfig = sections.PromotionConfig()

    @field_validator("name")
    @classmethod
    def _name_can_name_a_file(cls, name: str) -> str:
        if not (0 < len(name) <= 100 and name.isprintable()):
            raise ValueError("1 to 100 printable characters")
        if name[0] in ". " or set(name) & set("/\\"):
            raise ValueError("no / or \\ in it, and neither a dot nor a blank at its beginning")
        return name


def parse_config(settings: dict[str, Any], where: str = "configuration") -> ExperimentConfig:
    """Validate settings. Raises: ConfigError naming the field, the value and what is allowed."""
    return read_model(ExperimentConfig, settings, lambda problem: _bad_config(problem, where))


def _bad_config(problem: Problem, where: str) -> ConfigError:
    field = problem.field or "the whole configuration"
    more = f" (and {problem.n_more} more)" if problem.n_more else ""
    return ConfigError(
        f"{'unknown key' if problem.is_unknown_field else 'bad value for'} {field}{more}",
        where=where,
        # the value of an unknown key may be somebody's secret in the wrong place
        found="a key with that name"
        if problem.is_unknown_field
        else without_credentials(problem.found),
        expected=problem.expected,
        remedy=f"{problem.hint} Every field is explained in src/iceaggr/config/".strip(),
    )


def load_config(path: str | Path) -> ExperimentConfig:
    """Read a YAML configuration. Raises: ConfigError if it is missing, not YAML or not valid."""
    path = Path(path)
    data = _read(path)
    try:
        settings = yaml.load(data, Loader=_UniqueKeyLoader)
    except (yaml.YAMLError, ValueError, TypeError, LookupError, RecursionError) as error:
        raise ConfigError(
            "configuration is not YAML",
            where=str(path),
            found=" ".join(str(error).split())[:300],
            expected="sections with names and values",
            remedy="Presets that work are in configs/",
        ) from None
    if not isinstance(settings, dict):
        raise ConfigError(
            "configuration has no sections",
            where=str(path),
            found="nothing" if settings is None else shown(settings),
            expected="names of sections with values",
            remedy="Presets that work are in configs/",
        )
    # a run without a name of its own is told from others by its file
    return parse_config({"name": path.stem, **settings}, where=str(path))


def _read(path: Path) -> bytes:
    try:
        if path.is_file():
            return path.read_bytes()
        found = "a folder" if path.is_dir() else "no such file"
    except OSError as error:
        found = str(error.strerror)
    raise ConfigError(
        "configuration file not found",
        where=str(path),
        found=found,
        expected="a YAML file",
        remedy="Presets are in configs/",
    )


class _UniqueKeyLoader(yaml.SafeLoader):
    """Plain YAML values; of two equal keys, of which YAML would keep the last, it keeps none.

    Numbers are those of YAML 1.2. PyYAML, which follows YAML 1.1, takes 1e-3 for text, 010 for the
    octal number 8 and 1:30:00 for 5400 seconds; here they are 0.001, 10 and text.
    """

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Read a mapping. Raises: yaml.YAMLError if a key occurs twice."""
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            line = node.start_mark.line + 1
            raise yaml.YAMLError(f"key {twice[0]} occurs twice in the section at line {line}")
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: Any) -> int:
        """Read a whole number: decimal whatever zeros it begins with, or 0x, 0o, 0b."""
        text = self.construct_scalar(node)
        return int(text, 0 if text.lstrip("-+")[1:2].isalpha() else 10)


_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_UniqueKeyLoader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in forms if tag not in (_INT, _FLOAT)]
    for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_UniqueKeyLoader.add_implicit_resolver(
    _INT,
    re.compile(r"[-+]?(0x[0-9a-fA-F]+|0o[0-7]+|0b[01]+|[0-9]+(_[0-9]+)*)$"),
    list("-+0123456789"),
)
_UniqueKeyLoader.add_implicit_resolver(
    _FLOAT,
    re.compile(
        r"([-+]?(\.[0-9]+|[0-9]+(_[0-9]+)*(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
    ),
    list("-+.0123456789"),
)
_UniqueKeyLoader.add_constructor(_INT, _UniqueKeyLoader.construct_yaml_int)
