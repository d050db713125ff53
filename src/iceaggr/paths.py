"""Every name below a work folder (`work_uri`), so that steps find what other steps wrote.

    converted/DIGEST/                raw events of a set in another layout
    plans/DIGEST.json                what one sharding takes from a raw folder
    shards/KEY/                      one raw file by its content: shards, sketch, quarantine
    datasets/                        manifests of the latest data set and of the one before
    runs/RUN_ID/                     what one run leaves: documents, training/, evaluation/
    unfinished_runs/RUN_ID.json      notes on runs that ended without success
    unsent_tracking/RUN_ID/          records that the tracking server has not got yet

Folders of earlier versions are read by the same names: a changed name loses what lies there.
"""

from __future__ import annotations

MANIFEST = "manifest.json"
NORMALIZATION = "normalization.json"
LATEST_CHECKPOINT = "latest.json"
HAS_CHECKPOINTS = "has_checkpoints.json"
EVALUATION = "evaluation"
EVENTS_FILE = f"{EVALUATION}/events.parquet"
"""The table of all test events, below a run's folder as among the artifacts of its MLflow run."""
REPORT_FILE = f"{EVALUATION}/report.html"


class WorkPaths:
    """What lies below a work folder, as URIs."""

    def __init__(self, work_uri: str) -> None:
        uri = work_uri.rstrip("/")
        self.converted_uri = f"{uri}/converted"
        self.plans_uri = f"{uri}/plans"
        self.shards_uri = f"{uri}/shards"
        self.datasets_uri = f"{uri}/datasets"
        self.latest_manifest_uri = f"{self.datasets_uri}/latest_manifest.json"
        self.previous_manifest_uri = f"{self.datasets_uri}/previous_manifest.json"
        self.runs_uri = f"{uri}/runs"
        self.unfinished_uri = f"{uri}/unfinished_runs"
        self.unsent_uri = f"{uri}/unsent_tracking"

    def folders(self) -> tuple[str, ...]:
        """List all folders that the steps write to."""
        return (
            self.converted_uri,
            self.plans_uri,
            self.shards_uri,
            self.datasets_uri,
            self.runs_uri,
            self.unfinished_uri,
            self.unsent_uri,
        )

    def converted(self, digest: str) -> str:
        """Name the raw events that a plan of conversion with this digest makes."""
        return f"{self.converted_uri}/{digest}"

    def plan(self, digest: str) -> str:
        return f"{self.plans_uri}/{digest}.json"

    def shards(self, content_key: str) -> ShardPaths:
        return ShardPaths(f"{self.shards_uri}/{content_key}")

    def run(self, run_id: str) -> RunPaths:
        return RunPaths(f"{self.runs_uri}/{run_id}")

    def unfinished(self, run_id: str) -> str:
        return f"{self.unfinished_uri}/{run_id}.json"

    def unsent(self, run_id: str) -> str:
        return f"{self.unsent_uri}/{run_id}"


class ShardPaths:
    """The shards of one raw file and what describes them, as URIs."""

    def __init__(self, folder_uri: str) -> None:
        self.uri = folder_uri
        self.manifest_uri = f"{folder_uri}/{MANIFEST}"
        self.sketch_uri = f"{folder_uri}/sketch.json"
        self.quarantine_uri = f"{folder_uri}/quarantine.parquet"

    def shard(self, split: str, number: int) -> str:
        return f"{self.uri}/{split}-{number:05d}.arrow"


class RunPaths:
    """What one run leaves, as URIs."""

    def __init__(self, run_uri: str) -> None:
        self.uri = run_uri
        self.work_units_uri = f"{run_uri}/work_units.json"
        self.training = TrainingPaths(f"{run_uri}/training")
        self.events_uri = f"{run_uri}/{EVENTS_FILE}"
        self.report_uri = f"{run_uri}/{REPORT_FILE}"
        self.summary_uri = f"{run_uri}/summary.json"

    def evaluation_table(self, name: str) -> str:
        return f"{self.uri}/{EVALUATION}/{name}"


class TrainingPaths:
    """What a training reads and writes, as URIs; all but the model and the start is temporary."""

    def __init__(self, training_uri: str) -> None:
        uri = training_uri.rstrip("/")
        self.uri = uri
        self.model_uri = f"{uri}/model"
        self.checkpoints_uri = f"{uri}/checkpoints"
        self.latest_checkpoint_uri = f"{self.checkpoints_uri}/{LATEST_CHECKPOINT}"
        self.has_checkpoints_uri = f"{uri}/{HAS_CHECKPOINTS}"
        self.start_uri = f"{uri}/start.json"
        self.started_from_uri = f"{uri}/start"
        self.job_request = RequestPaths(f"{uri}/request")
        self.local_request = RequestPaths(f"{uri}/here")

    def temporary_folders(self) -> tuple[str, ...]:
        """List the folders that only a run in progress or its retry needs."""
        return (
            self.checkpoints_uri,
            self.job_request.uri,
            self.local_request.uri,
            self.started_from_uri,
        )


class RequestPaths:
    """What the processes of a training are asked and answer, as URIs."""

    def __init__(self, folder_uri: str) -> None:
        self.uri = folder_uri
        self.request_uri = f"{folder_uri}/request.json"
        self.manifest_uri = f"{folder_uri}/{MANIFEST}"
        self.normalization_uri = f"{folder_uri}/{NORMALIZATION}"
        self.result_uri = f"{folder_uri}/result.json"


def checkpoint_name(step: int, digest: str) -> str:
    """Name the folder of a checkpoint. digest: of its state, hex."""
    return f"step-{step:08d}-{digest[:16]}"


def step_of(checkpoint: str) -> int:
    """Read the step in the name of a checkpoint. Raises: ValueError, IndexError for other names."""
    return int(checkpoint.split("-")[1])
