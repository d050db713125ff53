"""The error family: every error names what, where, found, expected and remedy."""

from __future__ import annotations


class IceaggrError(Exception):
    """Base of every error a user can meet; the command line prints it as one line.

    what: the thing that failed, in plain words.  where: file, URI, field or parameter.
    found, expected: the two values that disagree.  remedy: what the user should do next.
    may_pass: the same may succeed later, since nothing is wrong with what was asked
    """

    may_pass = False

    def __init__(
        self,
        what: str,
        *,
        where: str = "",
        found: object = None,
        expected: object = None,
        remedy: str = "",
    ) -> None:
        self.what = what
        self.where = where
        self.found = found
        self.expected = expected
        self.remedy = remedy
        super().__init__(self._sentence())

    def _sentence(self) -> str:
        parts = [self.what]
        if self.where:
            parts[0] += f" [{self.where}]"
        if self.found is not None:
            parts.append(f"found {self.found}")
        if self.expected is not None:
            parts.append(f"expected {self.expected}")
        sentence = ": ".join([parts[0], ", ".join(parts[1:])]) if parts[1:] else parts[0]
        return f"{sentence}. {self.remedy}" if self.remedy else f"{sentence}."


class ConfigError(IceaggrError):
    """A configuration has an unknown key, a missing value or one out of range."""


class StorageError(IceaggrError):
    """An object could not be listed, read or written."""


class RawDataError(IceaggrError):
    """Raw events are structurally damaged: the step stops, nothing is guessed."""


class DetectorError(IceaggrError):
    """A sensor table is incomplete, contradictory or of another detector."""


class ShardError(IceaggrError):
    """A shard or manifest is missing, damaged or of another format version."""


class NormalizationError(IceaggrError):
    """Inputs are not finite or badly scaled after normalisation."""


class ModelError(IceaggrError):
    """A saved model is missing, damaged or of another format."""


class TrainingError(IceaggrError):
    """Training cannot go on: divergence, no learning, or a foreign checkpoint."""


class PartnerError(TrainingError):
    """Another process of the same training failed; its own error says why."""


class EvaluationError(IceaggrError):
    """Predictions cannot be scored as asked."""


class TrackingError(IceaggrError):
    """The tracking server or model registry refused or could not be reached."""


class ServiceError(IceaggrError):
    """A local service did not start, answer or end."""
