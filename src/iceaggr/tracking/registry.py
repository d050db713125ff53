"""The model registry: registering a model, finding the champion, replacing it, going back."""

from __future__ import annotations

import hashlib
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import mlflow
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from iceaggr.errors import TrackingError
from iceaggr.interfaces import ObjectStore
from iceaggr.models.bundle import DOCUMENT, GEOMETRY, WEIGHTS
from iceaggr.patience import ask_patiently, away_s
from iceaggr.service_settings import tracking_server
from iceaggr.storage.uris import file_uri
from iceaggr.tracking.connection import as_tracking_error, connect, patient
from iceaggr.tracking.model_package import BUNDLE, build_package, fetch_bundle

# One version in the model registry: what is known of it, and when it is refused.

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


# A lock on the tracking server, so that two promotions of one model cannot overlap.
#
# MLflow sets aliases without looking at the old value, but names in its registry are unique:
# creating a registered model of a certain name succeeds for exactly one client. That name is the
# lock.

LEASE_S = 120.0
_POLL_S = 0.3


class LockHeldError(TrackingError):
    """Another promotion of the same model holds the lock."""


class PromotionLock:
    """A lock that this process holds while the lock's entry in the registry carries its mark.

    A holder that died leaves its lock behind; after two minutes others may rename it. The new
    name is made from the dead owner's mark, so that only one of several can do so.
    """

    def __init__(self, client: MlflowClient, model_name: str) -> None:
        self._client = client
        self._model_name = model_name
        self._name = f"{model_name}.promotion-lock"
        self._mark = uuid.uuid4().hex

    def acquire(self, within_s: float) -> None:
        """Take the lock, waiting for other promotions. Raises: TrackingError if that is in vain."""
        ask_patiently(
            lambda: self._take(within_s),
            is_away=lambda error: isinstance(error, LockHeldError),
            patience_s=within_s,
            first_pause_s=_POLL_S,
            longest_pause_s=_POLL_S,
        )

    def _take(self, within_s: float) -> None:
        if self._create():
            return
        self._break_if_stale()
        raise LockHeldError(
            "another promotion of this model does not end",
            where=self._model_name,
            found=f"registered model {self._name} for {within_s:.0f} s",
            expected="a promotion of seconds",
            remedy="Delete that entry in the registry if no promotion is running",
        )

    def assert_held(self) -> None:
        """Check that nobody took the lock away. Raises: TrackingError if somebody did."""
        if self._owner() != self._mark:
            raise TrackingError(
                "the promotion took too long and lost its lock",
                where=self._model_name,
                found="the mark of another owner",
                expected=f"at most {LEASE_S:.0f} s",
                remedy="Look at the champion in the registry, then run the promotion step again",
            )

    def release(self) -> None:
        """Give the lock back, if it is still ours."""
        if self._owner() == self._mark:
            self._client.delete_registered_model(self._name)

    def _create(self) -> bool:
        try:
            self._client.create_registered_model(self._name, description=self._mark)
        except MlflowException as error:
            if error.error_code == "RESOURCE_ALREADY_EXISTS":
                return self._owner() == self._mark  # our own request, repeated
            raise
        return True

    def _owner(self) -> str:
        try:
            return str(self._client.get_registered_model(self._name).description)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return ""
            raise

    def _break_if_stale(self) -> None:
        with suppress(MlflowException):  # gone or broken by somebody else: look again
            found = self._client.get_registered_model(self._name)
            if time.time() - found.creation_timestamp / 1e3 > LEASE_S:
                abandoned = f"{self._name}.abandoned-{found.description}"
                self._client.rename_registered_model(self._name, abandoned)
                self._client.delete_registered_model(abandoned)


@contextmanager
def promotion_lock(
    client: MlflowClient, model_name: str, within_s: float = 180.0
) -> Iterator[PromotionLock]:
    """Hold the lock of one model's promotions."""
    lock = PromotionLock(client, model_name)
    lock.acquire(within_s)
    try:
        yield lock
    finally:
        lock.release()


CHAMPION, CHALLENGER = "champion", "challenger"
PREVIOUS_TAG = "previous_champion"


class ModelRegistry:
    """The registry of one tracking server; an empty URI means the server of the runs.

    patience_s: how long to wait, outside a pod, for a server that is away.
    Raises: TrackingError from every method, naming the model.
    """

    def __init__(self, tracking_uri: str = "", patience_s: float = 0.0) -> None:
        self._client: MlflowClient = connect(tracking_uri or tracking_server(), away_s(patience_s))

    @patient
    def register(
        self,
        store: ObjectStore,
        folder_uri: str,
        model_name: str,
        run_id: str,
        tags: Mapping[str, str],
        beside: Mapping[str, str] = MappingProxyType({}),
    ) -> RegisteredModel:
        """Register a saved model as a new version, under the alias challenger.

        folder_uri: what `save_model` wrote. beside: file name -> text, such as the model's card,
        kept beside the version's files. A retry with the same content returns the version that
        is there already. The version appears only when all its files have arrived.
        """
        with (
            as_tracking_error("cannot register the model", model_name),
            tempfile.TemporaryDirectory(prefix="iceaggr-model-") as scratch,
        ):
            bundle = fetch_bundle(store, folder_uri, Path(scratch, BUNDLE))
            content = hashlib.sha256((bundle / DOCUMENT).read_bytes()).hexdigest()
            known = self._find(model_name, run_id, content)
            if known is None:
                package = Path(scratch, "package")
                model_id = self._upload(bundle, package, model_name, run_id, beside)
                self._create_name(model_name)
                known = self._client.create_model_version(
                    model_name,
                    source=f"{MODELS}{model_id}",
                    run_id=run_id,
                    tags={**tags, CONTENT_TAG: content},
                    model_id=model_id,
                    await_creation_for=60,
                )
            self._client.set_registered_model_alias(model_name, CHALLENGER, known.version)
            return self.version(model_name, str(known.version))

    def version(self, model_name: str, version: str) -> RegisteredModel:
        """Describe one version."""
        with as_tracking_error("no such model version", f"{MODELS}{model_name}/{version}"):
            return described(self._client.get_model_version(model_name, version))

    @patient
    def champion(self, model_name: str) -> RegisteredModel | None:
        """Find the champion, None before the first promotion."""
        with as_tracking_error("cannot look up the champion", model_name):
            return self._by_alias(model_name, CHAMPION)

    @patient
    def before(self, champion: RegisteredModel) -> RegisteredModel | None:
        """Find the champion that a champion took the title from, None if it was the first."""
        version = champion.tags.get(PREVIOUS_TAG)
        return self.version(champion.name, version) if version else None

    @patient
    def record_verdict(self, model: RegisteredModel, tags: Mapping[str, str]) -> None:
        """Note on a version why it was promoted or not: verdict, margin, data digest."""
        with as_tracking_error("cannot tag the model version", model.uri):
            for key, value in tags.items():
                self._client.set_model_version_tag(model.name, model.version, key, str(value))
            if "verdict" in tags:  # the list of versions shows a description, and only bits of tags
                self._client.update_model_version(model.name, model.version, tags["verdict"])

    @patient
    def describe(self, model: RegisteredModel, text: str) -> None:
        """Write the description that the registry shows of a version, Markdown."""
        with as_tracking_error("cannot describe the model version", model.uri):
            self._client.update_model_version(model.name, model.version, text)

    @patient
    def set_champion(
        self, model: RegisteredModel, expected: RegisteredModel | None, tags: Mapping[str, str]
    ) -> None:
        """Make a version the champion, provided that `expected` still is.

        expected: the champion that the decision compared with, None if there was none.
        Promotions of one model exclude each other by a lock on the server, so of two decisions
        made against the same champion one is refused here. Limit: a process that stalls for two
        minutes while it holds the lock can lose it; it then notices before it returns.
        """
        with (
            as_tracking_error("cannot promote the model", model.uri),
            promotion_lock(self._client, model.name) as lock,
        ):
            found = self._by_alias(model.name, CHAMPION)
            if found is not None and found.version == model.version:
                return  # a retry of a promotion that succeeded
            check_unchanged(found, expected, model)
            previous = {PREVIOUS_TAG: found.version} if found else {}
            self.record_verdict(model, {**tags, **previous})
            lock.assert_held()
            self._client.set_registered_model_alias(model.name, CHAMPION, model.version)
            lock.assert_held()
            challenger = self._by_alias(model.name, CHALLENGER)
            if challenger is not None and challenger.version == model.version:
                self._client.delete_registered_model_alias(model.name, CHALLENGER)

    def rollback(self, model_name: str) -> RegisteredModel:
        """Give the title back to the champion before the present one, and return it.

        The move is chosen once: when the server's answer is lost, the same one is repeated.
        """
        present = self.champion(model_name)
        previous = self.before(present) if present else None
        if present is None or previous is None:
            raise TrackingError(
                "no previous champion to go back to",
                where=model_name,
                found=f"champion version {present.version}" if present else "no champion",
                expected="a champion that took the title from another",
                remedy="Choose a version yourself in the MLflow registry",
            )
        self._give_title_back(present, previous)
        return previous

    @patient
    def _give_title_back(self, present: RegisteredModel, previous: RegisteredModel) -> None:
        with (
            as_tracking_error("cannot roll back", present.name),
            promotion_lock(self._client, present.name) as lock,
        ):
            found = self._by_alias(present.name, CHAMPION)
            if found is None or found.version not in (present.version, previous.version):
                raise ChampionChangedError(
                    "the champion changed while it was rolled back",
                    where=present.name,
                    found=f"version {found.version}" if found else "no champion",
                    expected=f"version {present.version}, to be replaced by {previous.version}",
                    remedy="Look at the champion in the registry before you roll it back",
                )
            lock.assert_held()
            self._client.set_registered_model_alias(present.name, CHAMPION, previous.version)
            self.record_verdict(present, {"rolled_back": f"to version {previous.version}"})

    @patient
    def fetch(self, model_uri: str, into: Path) -> str:
        """Give the folder URI of a saved model, for `load_model`.

        model_uri: `models:/name@alias` or `models:/name/version`, which is downloaded below
        `into`; any other URI is a folder already and is returned as it is.
        """
        if not model_uri.startswith(MODELS):
            return model_uri
        with as_tracking_error("cannot fetch the model", model_uri):
            found = self._resolve(model_uri)
            refuse_foreign(found, model_uri)
            files = f"{MODELS}{found.name}/{found.version}/artifacts/{BUNDLE}"
            self._refuse_missing_files(files, model_uri)
            folder = mlflow.artifacts.download_artifacts(
                artifact_uri=files,
                dst_path=str(into),
                tracking_uri=self._client.tracking_uri,
                registry_uri=self._client.tracking_uri,
            )
        return file_uri(Path(folder))

    def _refuse_missing_files(self, files: str, model_uri: str) -> None:
        """Look for a model's files: of one that is gone, a server tells no more than a 500."""
        listed = mlflow.artifacts.list_artifacts(
            artifact_uri=files, tracking_uri=self._client.tracking_uri
        )
        found = {str(item.path).rpartition("/")[2] for item in listed}
        if missing := [name for name in (WEIGHTS, GEOMETRY, DOCUMENT) if name not in found]:
            raise TrackingError(
                "files of the registered model are gone",
                where=model_uri,
                found=f"no {', '.join(missing)} among {len(found)} files of the tracking server",
                expected="the files that were registered",
                remedy="Bring them back from a backup of the server's artifact store, or give the"
                " title to another version: `iceaggr promote --rollback`",
            )

    def _resolve(self, model_uri: str) -> ModelVersion:
        name, _, alias = model_uri.removeprefix(MODELS).partition("@")
        if alias:
            return self._client.get_model_version_by_alias(name, alias)
        name, _, version = name.rpartition("/")
        if not name or not version.isdecimal():
            raise TrackingError(
                "not the URI of a registered model",
                where=model_uri,
                found=repr(model_uri),
                expected="models:/name@champion or models:/name/3",
                remedy="The MLflow page of the model shows its names and versions",
            )
        return self._client.get_model_version(name, version)

    def _by_alias(self, model_name: str, alias: str) -> RegisteredModel | None:
        try:
            return described(self._client.get_model_version_by_alias(model_name, alias))
        except MlflowException as error:
            # an unknown alias is INVALID_PARAMETER_VALUE, an unknown model RESOURCE_DOES_NOT_EXIST
            if error.error_code in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"):
                return None
            raise

    def _find(self, model_name: str, run_id: str, content: str) -> ModelVersion | None:
        versions = self._client.search_model_versions(f"name='{model_name}' and run_id='{run_id}'")
        same = (v for v in versions if v.tags.get(CONTENT_TAG) == content and v.status == "READY")
        return next(same, None)

    def _create_name(self, model_name: str) -> None:
        try:
            self._client.create_registered_model(
                model_name, description="Direction of a neutrino from the raw pulses of its event"
            )
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _upload(
        self,
        bundle: Path,
        package: Path,
        model_name: str,
        run_id: str,
        beside: Mapping[str, str],
    ) -> str:
        experiment = self._client.get_run(run_id).info.experiment_id
        logged = self._client.create_logged_model(experiment, model_name, source_run_id=run_id)
        status = "FAILED"
        try:
            location = logged.artifact_location
            identity = {
                "run_id": run_id,
                "model_id": logged.model_id,
                "model_uuid": logged.model_id,
                "artifact_path": location,
            }
            build_package(bundle, package, identity)
            for name, text in beside.items():
                (package / name).write_text(text, encoding="utf-8")
            self._client.log_model_artifacts(logged.model_id, str(package))
            output = LoggedModelOutput(logged.model_id, step=0)
            self._client.log_outputs(run_id, models=[output])
            status = "READY"
        finally:
            self._client.finalize_logged_model(logged.model_id, status)
        return str(logged.model_id)
