"""What the demo runs, and with which settings."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from sleepfm.config import Config
from sleepfm.constants import CHANNELS, SPLITS
from sleepfm.data.dataset import Dataset
from sleepfm.data.format import DATASET_FILE
from sleepfm.demo.runner import Step
from sleepfm.errors import DatasetError
from sleepfm.paths import config_root
from sleepfm.signals.cohorts.catalogue import AUTO, load_rules, recognise_cohort
from sleepfm.tasks import BREATHING
from sleepfm.training.job_options import launch_line

BIN = Path(sys.executable).parent
# Those of SynthSleepNet in the paper's layout; breathing has a network of its own, on which events are found.
MODALITIES = ("EEG", "EOG", "EMG", "ECG")
EVENTS = ("apnea", "hypopnea")


class CohortConfig(Config):
    """The synthetic cohort: its size, and whether its nights are without the faults of real ones."""

    subjects: int = Field(ge=1)
    hours: float = Field(gt=0)
    clean: bool = False


class DemoConfig(Config):
    """Settings of the demo: overrides (``key=value``) for every kind of job, on top of its own configuration file."""

    example = "demo/default.yaml"
    cohort: CohortConfig
    processes: int = Field(2, ge=1)
    build: list[str] = []
    unimodal: list[str] = []
    multimodal: list[str] = []
    probe: list[str] = []
    events: list[str] = []
    finetune: list[str] = []


class Plan:
    """The demo's commands in ``folder``. Later ones depend on what earlier ones registered."""

    size = "tiny"
    """End of the names of the configurations."""

    def __init__(self, config: DemoConfig, folder: Path, seed: int, data: Path | None, cohort: str = AUTO) -> None:
        self.config = config
        self.folder = folder
        self.seed = seed
        self.data = data
        self.cohort = cohort
        self.source = data or folder / "cohort"
        self.shards = folder / "shards"
        self._breathes: bool | None = None if data else True

    @property
    def breathes(self) -> bool:
        """Whether events are found in airflow and effort: recordings of every split have these. Of recordings of the user's this
        is known once the shards are made, and assumed before.
        """
        if self._breathes is None:
            if not (self.shards / DATASET_FILE).exists():
                return True
            dataset = Dataset.open(self.shards)
            columns = [CHANNELS.index(name) for name in BREATHING]
            recorded = dataset.present[:, columns].sum(axis=1).tolist()
            having = {row.split for row, number in zip(dataset.records, recorded, strict=True) if number}
            self._breathes = set(SPLITS) <= having
        return self._breathes

    @property
    def trained(self) -> list[str]:
        """The pretraining jobs."""
        unimodal = [*MODALITIES, *(["RESP"] if self.breathes else [])]
        return [*(f"pretrain-{modality.lower()}" for modality in unimodal), "pretrain-multimodal"]

    @property
    def judged(self) -> list[str]:
        """The jobs whose models are evaluated."""
        return ["probe-stage", *(self.event_job(task) for task in EVENTS), "finetune-stage"]

    @property
    def n_steps(self) -> int:
        """Commands of the demo."""
        return (self.data is None) + 1 + len(self.trained) + len(self.judged) + 1

    def event_job(self, task: str) -> str:
        """The job of a task about events: an event head on breathing, or a probe of epochs where nothing of it was recorded."""
        return f"{'events' if self.breathes else 'probe'}-{task}"

    def output(self, name: str) -> Path:
        """Folder of the training job ``name``."""
        return self.folder / name

    def cached(self, what: str) -> str:
        """The setting that keeps ``what`` a job computes of the nights in the folder of the demo."""
        return f"cache={self.folder / 'cache' / what}"

    def synth(self) -> Step:
        """Make the cohort."""
        size = self.config.cohort
        arguments = ["--subjects", str(size.subjects), "--hours", f"{size.hours:g}", "--seed", str(self.seed)]
        workers = ["--workers", str(self.config.processes), *(["--clean"] if size.clean else [])]
        return Step("synth", [str(BIN / "sleepfm"), "synth", str(self.source), *arguments, *workers])

    def build(self) -> Step:
        """Make the shards."""
        cohort = ["--cohort", self.cohort if self.data else "shhs1"]
        arguments = [str(self.source), str(self.shards), *cohort, "--workers", str(self.config.processes)]
        command = [sys.executable, "-m", "shards", "build", *arguments, *self.config.build]
        # A night with faults may be refused, as one of a real cohort; the report says which.
        return Step("shards", command, refusals_ok=True)

    def pretrain(self, modality: str) -> Step:
        """Pretrain one modality's NeuroNet."""
        name = modality.lower()
        return self._train(f"pretrain-{name}", "pretrain", f"pretrain/{name}-{self.size}", self.config.unimodal)

    def multimodal(self) -> Step:
        """Pretrain SynthSleepNet on the four NeuroNets."""
        encoders = [f"encoders.{m}={self.address(f'pretrain-{m.lower()}')}" for m in MODALITIES]
        return self._train("pretrain-multimodal", "pretrain", "pretrain/multimodal-tiny", [*encoders, *self.config.multimodal])

    def probe(self, task: str) -> Step:
        """Train a head for ``task`` on the frozen encoder."""
        return self._probe(f"probe-{task}", f"probe-{task}-tiny", self.address("pretrain-multimodal"))

    def events(self, task: str) -> Step:
        """Train an event head for ``task`` on the frozen network of breathing; a probe on SynthSleepNet without such."""
        if not self.breathes:
            return self.probe(task)
        overrides = [f"encoder={self.address('pretrain-resp')}", self.cached("frames"), *self.config.events]
        return self._train(f"events-{task}", "finetune", f"downstream/events-{task}-{self.size}", overrides)

    def finetune(self) -> Step:
        """Fine-tune for sleep stages with Mamba context."""
        encoder = f"encoder={self.address('pretrain-multimodal')}"
        return self._train(
            "finetune-stage", "finetune", f"downstream/finetune-stage-{self.size}", [encoder, *self.config.finetune]
        )

    def score(self) -> Step:
        """Score one night of the test split."""
        recording = self.unseen_night()
        models = self.scoring_models()
        arguments = [str(recording), "--out", str(self.folder / "scored")]
        scoring = self.scoring_file(recording)
        arguments += ["--scoring", str(scoring)] if scoring else []
        arguments += ["--model", *models] if models else []
        arguments += ["--cohort", self.cohort] if self.cohort != AUTO else []
        # It quotes what scorers and recorders wrote, as is fit for the terminal of whom the recordings belong to.
        return Step("score", [str(BIN / "sleepfm"), "score", *arguments], texts_in_log=self.data is None)

    def unseen_night(self) -> Path:
        """A recording of the test split, to be scored before the user's eyes: of those whose events a person scored, the one with
        the most scored epochs, so that there is much to compare with.

        Raises:
            DatasetError: the test split is empty.
        """
        dataset = Dataset.open(self.shards)
        nights = [row for row in dataset.records if row.split == "test"]
        if not nights:
            raise DatasetError(f"{self.shards}: no recording in the test split; the demo needs more recordings")
        return self.source / max(nights, key=lambda row: (row.has_events, row.scored_epochs, row.record)).source

    def scoring_file(self, recording: Path) -> Path | None:
        """The scoring that belongs to a recording of the source, if there is one."""
        from sleepfm.signals.recording import read_edf_header
        from sleepfm.signals.scorings.finder import find_scoring

        header = read_edf_header(recording)
        labels = (signal.label for signal in header.ordinary)
        cohort = recognise_cohort(recording.name, labels, load_rules(self.cohort))
        return find_scoring(recording, self.source, cohort, header)

    def scoring_models(self) -> list[str]:
        """Models to score with; none where the champions are this demo's own."""
        staging = max(("probe-stage", "finetune-stage"), key=lambda name: self.metric(name, "val/kappa"))
        others = (self.event_job(task) for task in EVENTS)
        chosen = [self.address(name) for name in (staging, *others)]
        return [] if all(address.endswith("@champion") for address in chosen) else chosen

    def metric(self, name: str, metric: str) -> float:
        """A figure of the finished job ``name``."""
        return float(self.result(name)["metrics"][metric])

    def address(self, name: str) -> str:
        """Registry address of what the job ``name`` made: the champion, or its version where another one is champion.

        A registry may hold a better model from other data; the report must still speak of one chain.
        """
        result = self.result(name)
        version = "@champion" if result["promoted"] else f"/{result['version']}"
        return f"models:/{result['name']}{version}"

    def result(self, name: str) -> dict:
        """The result of the finished job ``name``."""
        # Imports torch, for which making the cohort and the shards need not wait.
        from sleepfm.training.folder import RunFolder

        return json.loads(RunFolder(self.output(name)).result.read_text())

    def processes(self) -> int:
        """Processes of a training job: those of the configuration, and on GPUs at most one for each."""
        # Imports torch, for which making the cohort and the shards need not wait.
        import torch

        from sleepfm.models.device import accelerator

        return min(self.config.processes, torch.cuda.device_count()) if accelerator() == "cuda" else self.config.processes

    def _probe(self, name: str, config: str, encoder: str, *settings: str) -> Step:
        overrides = [f"encoder={encoder}", self.cached("embeddings"), *settings, *self.config.probe]
        return self._train(name, "probe", f"downstream/{config}", overrides)

    def _train(self, name: str, script: str, config: str, overrides: Sequence[str]) -> Step:
        paths = [f"data.path={self.shards}", f"train.output={self.output(name)}"]
        words = [str(config_root() / f"{config}.yaml"), *paths, *overrides]
        return Step(name, launch_line(script, self.processes(), words))
