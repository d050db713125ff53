"""One version in the model registry: what is known of it, and when it is refused."""

from __future__ import annotations

from dataclasses import dataclass, field

from mlflow.entities.model_registry import ModelVersion

from iceaggr.errors import TrackingError

CONTENT_TAG = "content_sha256"
"""Marks every version that iceaggr registered; the hash tells a retry that it is there already."""

MODELS = "models:/"


@dataclass(frozen=True)
class RegisteredModel:
    """One version in the registry. run_id: the MLflow run that trained it."""

    name: str
    version: str
    run_id: str
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def uri(self) -> str:
        """Name it for `mlflow models serve` and `iceaggr predict`."""
        return f"{MODELS}{self.name}/{self.version}"


class ChampionChangedError(TrackingError):
    """Another model became champion while the decision was made: it must be made again."""


def described(version: ModelVersion) -> RegisteredModel:
    """Describe what MLflow calls a version."""
    return RegisteredModel(
        version.name, str(version.version), version.run_id or "", dict(version.tags)
    )


def refuse_foreign(version: ModelVersion, model_uri: str) -> None:
    """Refuse a version that iceaggr did not register. Raises: TrackingError."""
    if CONTENT_TAG not in version.tags:
        raise TrackingError(
            "registered model is of another project",
            where=model_uri,
            found=f"version {version.version} of {version.name} without the tag {CONTENT_TAG}",
            expected="a version that iceaggr registered",
            remedy="Check the name of the model and promotion.model_name",
        )


def check_unchanged(
    found: RegisteredModel | None, expected: RegisteredModel | None, model: RegisteredModel
) -> None:
    """Compare the champion found with the expected one. Raises: ChampionChangedError."""
    versions = [f"version {m.version}" if m else "no champion" for m in (found, expected)]
    if versions[0] != versions[1]:
        raise ChampionChangedError(
            "the champion changed while the decision was made",
            where=model.name,
            found=versions[0],
            expected=f"{versions[1]}, with which version {model.version} was compared",
            remedy="Run the promotion step again: it compares with the new champion",
        )
