"""A lock on the tracking server, so that two promotions of one model cannot overlap.

MLflow sets aliases without looking at the old value, but names in its registry are unique: creating
a registered model of a certain name succeeds for exactly one client. That name is the lock.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from iceaggr.errors import TrackingError

LEASE_S = 120.0
_POLL_S = 0.3


class PromotionLock:
    """A lock that this process holds, as long as its name in the registry bears its owner's mark.

    A holder that died leaves its lock behind; after two minutes anybody may rename it away. The new
    name is made from the dead owner's mark, so that only one of several can do so.
    """

    def __init__(self, client: MlflowClient, model_name: str) -> None:
        self._client = client
        self._model_name = model_name
        self._name = f"{model_name}.promotion-lock"
        self._mark = uuid.uuid4().hex

    def acquire(self, within_s: float) -> None:
        """Take the lock, waiting for other promotions. Raises: TrackingError if that is in vain."""
        deadline = time.monotonic() + within_s
        while not self._create():
            self._break_if_stale()
            if time.monotonic() > deadline:
                raise TrackingError(
                    "another promotion does not end",
                    where=self._model_name,
                    found=f"registered model {self._name} for {within_s:.0f} s",
                    expected="a promotion of seconds",
                    remedy="Delete that entry in the registry if no promotion is running",
                )
            time.sleep(_POLL_S)

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
