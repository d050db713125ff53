"""What the parameters and artifacts of the steps mean, said once for all steps that share them."""

import inspect
from collections.abc import Callable, Mapping
from typing import TypeVar

Step = TypeVar("Step", bound=Callable[..., object])

MEANINGS = {
    # of the run
    "config": "Settings, see configs/.",
    "experiment_name": "MLflow experiment.",
    "run_id": "Identity of the pipeline run.",
    "run_name": "Name of the pipeline run, for people.",
    "work_uri": "Folder in object storage for everything the pipeline makes.",
    "raw_uri": "Folder of the raw events: train/batch_N.parquet, train_meta.parquet.",
    # of training, wherever it runs
    "gpu_count": 'GPUs of each machine as text, one process each; "0" = CPU, "configured" = one'
    " process on training.device.",
    "max_train_minutes": "Wall-clock limit of training in minutes; 0 = as configured.",
    "start_from": '"scratch", "champion", or "configured".',
    # artifacts of more than one step
    "manifest": "All shards of this run.",
    "normalization": "Transform, centre and scale of each input.",
    "model": "Where the trained model lies.",
    "evaluation": "Figures on the test split, and where the table of every test event lies.",
}


def described(own: Mapping[str, str] = MEANINGS, **others: str) -> Callable[[Step], Step]:
    """Add to a docstring what each parameter means: KFP reads it there and shows it.

    own: meanings by name.  others: those that only this function has.
    Raises: KeyError if a parameter has no meaning.
    """

    def decorate(step: Step) -> Step:
        known = {**own, **others}
        lines = [f"    {name}: {known[name]}" for name in inspect.signature(step).parameters]
        step.__doc__ = "\n".join([f"{inspect.getdoc(step)}\n", "Args:", *lines])
        return step

    return decorate
