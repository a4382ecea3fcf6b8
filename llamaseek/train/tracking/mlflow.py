"""MLflow; `MLFLOW_TRACKING_URI` says where, as sqlite:///mlflow.db or a server's address."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from llamaseek.train.tracking.tracker import PROJECT, TrackedRun, flat

PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
"""A server that is away holds training up for seconds, where MLflow's own values allow minutes."""
LONGEST_VALUE = 6000  # characters of a parameter (mlflow.utils.validation.MAX_PARAM_VAL_LENGTH)
PARAMS = 100  # of one request (mlflow.utils.validation.MAX_PARAMS_TAGS_PER_BATCH)


def start(run: TrackedRun) -> MlflowTracker:
    """A run of the experiment that MLFLOW_EXPERIMENT_NAME names, or of `llamaseek`."""
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    return MlflowTracker(run)


class MlflowTracker:
    """Through the client, which leaves alone the active run of the program around it."""

    def __init__(self, run: TrackedRun) -> None:
        self.client = MlflowClient()
        if run.id is not None:
            self.id = run.id
            self.client.update_run(run.id, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self.client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self.client.create_experiment(name)
        self.id = self.client.create_run(number, run_name=run.name).info.run_id
        params = [Param(k, str(v)[:LONGEST_VALUE]) for k, v in flat(run.config).items()]
        for start in range(0, len(params), PARAMS):
            self.client.log_batch(self.id, params=params[start : start + PARAMS])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """A metric for each value; characters that MLflow refuses in names become `_`."""
        now = int(time.time() * 1000)
        names = {name: re.sub(r"[^\w\-. :/]", "_", name) for name in values}
        metrics = [Metric(names[name], value, now, step) for name, value in values.items()]
        self.client.log_batch(self.id, metrics=metrics)

    def table(self, name: str, rows: Sequence[Mapping[str, str]]) -> None:
        """An artifact that MLflow shows as a table."""
        columns = {column: [row[column] for row in rows] for column in rows[0]}
        self.client.log_table(self.id, columns, f"{name}.json")

    def file(self, path: Path) -> None:
        """An artifact of the run."""
        self.client.log_artifact(self.id, str(path))

    def close(self, completed: bool) -> None:
        """Mark the run as finished, or as killed."""
        self.client.set_terminated(self.id, "FINISHED" if completed else "KILLED")
