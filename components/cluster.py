"""What only a cluster acts on: resources, retries, credentials, placement of the training pod.

The local runner gets none of it: there a failing step ends the run at once, and credentials are
those of the shell. Nothing here holds a value of a credential, only the names of its keys.
"""

from typing import Any

from kfp import kubernetes
from kfp.dsl.pipeline_channel import PipelineChannel

from iceaggr.machines.credentials import (
    OBJECT_STORE_ENVIRONMENT,
    OBJECT_STORE_SECRET,
    SETTINGS_CONFIG_MAP,
    SETTINGS_ENVIRONMENT,
    TRACKING_ENVIRONMENT,
    TRACKING_SECRET,
)

RUN_DEADLINE_HOURS = 14 * 24
"""After which Argo ends a run, whatever it does."""


def settle(task: Any, cpu: Any, memory: Any, n_retries: int = 2) -> Any:
    """Give a step its resources, its retries and its credentials. Returns the step.

    cpu, memory: Kubernetes quantities such as "2" and "8Gi", or string parameters of the pipeline.
    """
    _bring(task, cpu, memory)
    task.set_cpu_request(cpu)
    # request = limit: a pod that may use more memory than it asked for is the first to be evicted
    task.set_memory_request(memory).set_memory_limit(memory)
    # all steps are idempotent, and training goes on from its last checkpoint. The longest duration
    # is no cap on a pause: Argo counts it from the step's first start and ends a pod that works
    # beyond it (retryStrategy.backoff.maxDuration), and a step that is not given one has an hour.
    # So it is the run's own deadline, which always comes first
    task.set_retry(
        n_retries,
        backoff_duration="30s",
        backoff_factor=2.0,
        backoff_max_duration=f"{RUN_DEADLINE_HOURS * 3600}s",
    )
    # network policies know our pods by it
    kubernetes.add_pod_label(task, "app.kubernetes.io/part-of", "iceaggr")
    # as the image does by itself; `restricted` pod security wants it said
    kubernetes.set_security_context(task, run_as_non_root=True)
    # optional: where something is missing the step says what, while Kubernetes would wait silently;
    # with workload identity there are no keys at all
    kubernetes.use_config_map_as_env(
        task, SETTINGS_CONFIG_MAP, dict(SETTINGS_ENVIRONMENT), optional=True
    )
    kubernetes.use_secret_as_env(
        task, OBJECT_STORE_SECRET, dict(OBJECT_STORE_ENVIRONMENT), optional=True
    )
    kubernetes.use_secret_as_env(task, TRACKING_SECRET, dict(TRACKING_ENVIRONMENT), optional=True)
    return task


def place_training(
    task: Any, gpu_count: Any, gpu_type: Any, node_selector: Any, tolerations: Any
) -> Any:
    """Put the training step on a node with GPUs. Returns the step.

    gpu_count: a string, never a number: the backend drops numbers without an error, and the pod
    would start without a GPU.
    """
    _bring(task, gpu_count, gpu_type)
    task.set_accelerator_type(gpu_type).set_accelerator_limit(gpu_count)
    kubernetes.add_node_selector_json(task, node_selector)
    kubernetes.add_toleration_json(task, tolerations)
    # NCCL and gloo exchange data of one machine through shared memory, of which a pod has 64 MiB
    kubernetes.empty_dir_mount(
        task, volume_name="dshm", mount_path="/dev/shm", medium="Memory", size_limit="8Gi"
    )
    return task


def _bring(task: Any, *values: Any) -> None:
    # the compiler hands a parameter down into loops and exit handlers only if a step there is known
    # to read it, and it overlooks what is read for resources alone
    task.register_pipeline_channels([v for v in values if isinstance(v, PipelineChannel)])
