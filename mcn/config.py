"""Every setting of a command, typed: its flags, its config file and its presets are these fields.

Flat on purpose: ``--inner_lr .003`` on the command line is ``inner_lr: .003`` in a file is
``config.inner_lr`` in code. "Row n" is the line of ``book/protocol.md`` that says what the paper
leaves open and why the default is what it is.
"""

import dataclasses
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal, TypeVar

import yaml

from mcn.errors import MCNError
from mcn.settings import (
    DataConfig,
    LoopConfig,
    LossConfig,
    MetaConfig,
    NetworkConfig,
    PrecisionConfig,
    RunConfig,
    StartConfig,
    TrainPrecisionConfig,
)


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(LoopConfig, NetworkConfig, LossConfig, MetaConfig, TrainPrecisionConfig):
    """Self-supervised pre-training: contrast only, contrast + binary loss, or full MCN."""

    init_from: str = ""
    """Weights to start from (row 29): checkpoint or run folder; exported, torchvision's or CoCLR's file."""
    shuffle_views: bool = False
    """Control experiment: pair each RGB clip with another video's second view."""
    eval_every: int = 0
    """Epochs between nearest-neighbour evaluations on the test list; 0: none."""
    eval_clips: int = 2
    """Clips a video in those evaluations."""


@dataclass(frozen=True, kw_only=True)
class EvalConfig(RunConfig, DataConfig, StartConfig, PrecisionConfig):
    """Frozen features of a pre-trained network: shared by probe, retrieve and features."""

    view: Literal[
        "rgb", "residual", "signed_residual", "flow_u", "flow_v",
        "rgb+residual", "rgb+signed_residual", "rgb+flow_u", "rgb+flow_v",
    ] = "rgb"  # fmt: skip
    """View the network is shown, or two whose features are joined, each at unit length (row 45)."""
    second_checkpoint: str = ""
    """Checkpoint or run folder that makes the second of two joined views; empty: the same network."""
    crops: Literal["centre", "ten"] = "centre"
    """What of a clip is shown: its centre, or corners and centre and all mirrored (row 41)."""
    feature: Literal["pooled", "conv5"] = "pooled"
    """Pooled feature, or conv5 max-pooled 2 x 2 and flattened, as in IIC (row 46)."""
    cache: str = ""
    """Folder where features are kept; empty: features/ in the checkpoint's run folder; none: nowhere."""
    batch_size: int = 32
    """Clips through the network at a time."""


_TOP = (1, 5, 10, 20, 50)


@dataclass(frozen=True, kw_only=True)
class RetrieveConfig(EvalConfig):
    """Nearest neighbours: test videos ask, training videos answer (row 46)."""

    top: int | tuple[int, ...] = _TOP
    """A query counts as right if one of its k nearest has its class; --query shows 10, or k if given."""

    @property
    def ks(self) -> tuple[int, ...]:
        """The numbers of ``top``, also where it is one."""
        return (self.top,) if isinstance(self.top, int) else tuple(self.top)

    @property
    def shown(self) -> int:
        """How many neighbours of a single file are shown: the largest of ``top``, 10 by default."""
        return 10 if self.ks == _TOP else max(self.ks)


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(LoopConfig, StartConfig, TrainPrecisionConfig):
    """Supervised training of a backbone (pre-trained or from scratch) and a new classifier (row 40)."""

    checkpoint: str = ""
    """Checkpoint, run folder or other weights (row 29); a run from scratch has none, says --from_scratch."""
    from_scratch: bool = False
    """Train a backbone that was never pre-trained; has to be said, so that none is forgotten by accident."""
    view: Literal["rgb", "residual", "signed_residual"] = "rgb"
    """View the network is shown (row 39: RGB)."""
    crops: Literal["centre", "ten"] = "centre"
    """What of a test clip is shown: its centre, or corners and centre and all mirrored (row 41)."""
    dropout: float = 0.5
    """Dropout before the classifier."""
    batch_size: int = 72
    """Videos a batch."""
    epochs: int = 300
    """Passes over the training list."""
    lr: float = 0.02
    """Learning rate at the start."""
    milestones: tuple[float, ...] = (0.4, 0.8)
    """Where the steps are, as shares of the run."""


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(LoopConfig, EvalConfig):
    """Linear probe of a frozen backbone (row 43), after one of two recipes.

    quick: logistic regression on one cached feature a video; of the settings of a training run it
    needs none. headline: CoCLR's, a layer trained on random clips, to be set beside the paper's.
    """

    recipe: Literal["quick", "headline"] = "quick"
    """quick: minutes, not the paper's protocol; headline: L2, BatchNorm and fc trained on random clips."""
    c: float = 1.0
    """quick: inverse strength of the L2 penalty (scikit-learn's C), on standardised features."""
    sweep: tuple[float, ...] = ()
    """Values of c (quick) or weight_decay (headline); the best on held-out training videos is used."""
    holdout: float = 0.2
    """Share of each class's training videos that a sweep holds out, whole source videos at a time."""
    batch_size: int = 64
    """headline: Videos a batch; quick: Clips through the network at a time."""
    epochs: int = 100
    """Passes over the training list."""
    lr: float = 0.1
    """Learning rate at the start."""
    milestones: tuple[float, ...] = (0.6, 0.8)
    """Where the steps are, as shares of the run."""


@dataclass(frozen=True, kw_only=True)
class AttendConfig(RunConfig, DataConfig, StartConfig):
    """Activation maps of conv5 (row 53), and how well they cover what moves (ours, not the paper's)."""

    view: Literal["rgb", "residual", "signed_residual"] = "rgb"
    """View the network is shown."""
    compare: str = ""
    """Checkpoint or run folder to compare with, drawn above; untrained: the network before its training."""
    placement: Literal["centres", "stretched"] = "centres"
    """Cells of conv5 drawn where they look, or stretched evenly over the clip (plain resizing)."""
    threshold: float = 0.05
    """Residual (mean of the channels, of full brightness 1) above which a pixel moves."""
    moving: bool = False
    """Draw a row of the pixels that count as moving."""
    accuracy: tuple[float, ...] = ()
    """Top-1 in per cent, measured elsewhere, of --compare and --checkpoint: bars under maps, as in Fig. 1."""
    accuracy_source: str = ""
    """Where those numbers come from; stands under the bars."""
    batch_size: int = 8
    """Clips through the network at a time."""


@dataclass(frozen=True, kw_only=True)
class AblateConfig(RunConfig):
    """The rows of one of the paper's tables, with several seeds, recorded as they are done."""

    data: str = ""
    """Folder of the data set, with class folders and split lists."""
    split: Literal[1, 2, 3] = 1
    """Official split (row 56)."""
    reader: Literal["auto", "decord", "pyav"] = "auto"
    """Video decoder; auto takes decord where its frames are right, else PyAV."""
    out: str = "runs/ablate"
    """Folder of the runs behind the records."""
    results: str = "results"
    """Folder of the records (one JSON file a row and seed)."""
    profile: Literal["smoke", "laptop", "paper"] = "laptop"
    """Which preset's settings the rows change; paper is the one of the row's backbone."""
    seeds: int = 3
    """Seeds a row, from --seed on."""
    jobs: int = 1
    """Rows that run at the same time, each with its share of the cores."""
    rows: tuple[str, ...] = ()
    """Names of the rows to run, such as [contrast,mcn]; empty: all of the table."""
    evaluate: tuple[Literal["probe", "headline", "retrieval", "finetune", "motion"], ...] = (
        "probe", "retrieval",
    )  # fmt: skip
    """What each network is evaluated by, once, at its last epoch."""
    subset: Literal["test", "held-out"] = "test"
    """held-out: training videos that pre-training leaves out, to choose step sizes on; see --validation."""
    set: tuple[str, ...] = ()
    """Changes to the profile's pre-training settings, such as [epochs=40,size=40]."""
    unseen: tuple[str, ...] = ()
    """Classes that pre-training leaves out, and that the evaluations are then about alone (transfer)."""
    tuned: str = ""
    """Folder of held-out records: each row takes the step sizes that did best there (as many for each)."""
    name: str = ""
    """What records call the data; empty: what was recognised, or the folder's name."""


@dataclass(frozen=True, kw_only=True)
class DiagnoseConfig(RunConfig):
    """What a meta step does to the networks of a pre-training run, on batches of its own settings."""

    out: str = "results/diagnosis"
    """Folder of the result: one JSON file."""
    name: str = ""
    """Name of that file; empty: the run folder's."""
    data: str = ""
    """Folder of the run's videos; empty: where they were when it ran."""
    batches: int = 8
    """Support and query batches, the same for every checkpoint; means over them have standard errors."""
    inner_lr: float | None = None
    """alpha_1; empty: the run's own, or its learning rate at the checkpoint's last step."""
    probes: bool = False
    """Whether to probe the features too, for the class and for the source video (scene): reads both lists."""
    reader: Literal["auto", "decord", "pyav"] = "auto"
    """Video decoder; auto takes decord where its frames are right, else PyAV."""
    workers: int = 0
    """Processes that decode videos; 0 decodes in the main process."""


@dataclass(frozen=True, kw_only=True)
class BenchConfig(RunConfig, NetworkConfig):
    """A training step on random clips; a preset gives backbone, clips and batch of its pre-training."""

    out: str = "results/benchmarks"
    """Folder of the record: one JSON file a backbone, clip size and batch."""
    frames: int = 32
    """Frames a clip."""
    size: int = 128
    """Height and width of a clip, in pixels."""
    batch_size: int = 4
    """Videos a stage: a step takes as many for support as for query."""
    rounds: int = 9
    """Rounds in which every way has its turn; medians over them are compared."""
    ways: tuple[str, ...] = (
        "first", "learn2learn", "higher", "torchopt", "fast", "balanced", "lean",
    )  # fmt: skip
    """Ways to measure beside the plain step and the textbook's graph, such as [fast,lean]."""
    memory: bool = True
    """Whether memory is measured, and the largest batch with it."""
    confirm: bool = True
    """Whether the largest batch is tried out (on a GPU only)."""


@dataclass(frozen=True, kw_only=True)
class EstimateConfig(RunConfig):
    """Hours and memory of the paper's runs on this device."""

    out: str = ""
    """File for the lines that are printed; empty: none."""
    backbones: tuple[Literal["r3d_18", "r2plus1d_18", "s3d"], ...] = ("r3d_18", "r2plus1d_18", "s3d")
    """Backbones to measure."""
    devices: int = 1
    """Devices that share a batch; assumed to be so many times as fast."""
    batch_size: int = 4
    """Videos a stage in what is measured."""
    rounds: int = 5
    """Steps of each kind that are timed, in turn."""
    frames: int | None = None
    """Frames of the measured clip; empty: the paper's 32 on a GPU, 8 on a CPU."""
    size: int | None = None
    """Height and width of the measured clip, in pixels; empty: the paper's 128 on a GPU, 64 on a CPU."""
    width: int | None = None
    """Channels of the first stage, to try the command out; empty: the backbone's own."""


C = TypeVar("C")


def presets() -> list[str]:
    """Names of the presets that come with the package.

    >>> "laptop" in presets()
    True
    """
    return sorted(
        file.name[:-5] for file in resources.files("mcn.presets").iterdir() if file.name.endswith(".yaml")
    )


def load_preset(name: str, command: str) -> dict[str, Any]:
    """The settings that preset ``name`` has for ``command`` (``pretrain``, ``probe``, ...).

    A preset is a YAML file with a block ``all`` and a block a command. Raises :class:`~mcn.errors.MCNError`
    for an unknown name.
    """
    if name not in presets():
        raise MCNError(f"unknown preset {name!r}: one of {', '.join(presets())}")
    text = resources.files("mcn.presets").joinpath(f"{name}.yaml").read_text()
    blocks = yaml.safe_load(text)
    return {**blocks.get("all", {}), **blocks.get(command, {})}


def build(config_class: type[C], settings: dict[str, Any]) -> C:
    """A config from a dict, leaving out what this config has no field for.

    Lets one preset's block ``all`` serve commands with different fields.

    >>> build(ProbeConfig, {"clips": 2, "epochs": 3}).clips
    2
    """
    names = {field.name for field in dataclasses.fields(config_class)}  # type: ignore[arg-type]
    known = {key: tuple(v) if isinstance(v, list) else v for key, v in settings.items() if key in names}
    return config_class(**known)


def to_yaml(config: Any) -> str:
    """A config as the YAML text that ``--config`` reads back."""
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(config).items()}
    return yaml.safe_dump(plain, sort_keys=False)
