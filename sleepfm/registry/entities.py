"""What MLflow knows of a run beside its tags: the data sets that went in, as entities that it lists and filters by."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

# MLflow holds as many characters of a digest; the source holds all.
_DIGEST_LENGTH = 36


def log_datasets(mlflow_client: MlflowClient, run_id: str, digests: Mapping[str, str], context: str) -> None:
    """Say that the data sets ``digests``, by name, went into a run; ``context`` is what for, such as ``training``.

    Raises:
        MlflowException: the store refuses.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    tags = [InputTag("mlflow.data.context", context)]
    inputs = [
        Dataset(name, digest[:_DIGEST_LENGTH], "sleepfm shards", json.dumps({"digest": digest}))
        for name, digest in digests.items()
    ]
    mlflow_client.log_inputs(run_id, [DatasetInput(data, tags) for data in inputs])
