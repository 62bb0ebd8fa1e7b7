"""Settings that several commands share, in blocks; :mod:`mcn.config` puts each command's together.

"Row n" is the line of ``book/protocol.md`` that says what the paper leaves open and why the default is
what it is.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from mcn._cores import usable_cores
from mcn.errors import MCNError

# Which numbers a setting may be, where not every number makes sense: names, rule, the rule in words.
_RULES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("frames stride size clips eval_clips dim batch_size epochs checkpoint_every keep seeds jobs",
     lambda v: v >= 1, "at least 1"),
    ("rounds devices batches", lambda v: v >= 1, "at least 1"),
    ("threads workers shares negatives eval_every inner_steps inner_lr outer_support_weight",
     lambda v: v >= 0, "at least 0"),
    ("lr momentum weight_decay", lambda v: v >= 0, "at least 0"),
    ("max_bad cls_weight dropout warmup first_order_until", lambda v: 0 <= v <= 1, "from 0 to 1"),
    ("bank_momentum", lambda v: 0 <= v < 1, "from 0 to below 1"),
    ("tau c read_timeout inner_clip", lambda v: v > 0, "above 0"),
    ("fcm_group", lambda v: v >= 2, "at least 2"),
    ("threshold", lambda v: 0 <= v < 1, "from 0 to below 1"),
    ("accuracy", lambda v: all(0 <= x <= 100 for x in v), "per cent, such as [50.5,60.0]"),
    ("holdout", lambda v: 0 < v < 1, "above 0 and below 1"),
    ("sweep", lambda v: all(x > 0 for x in v), "numbers above 0, such as [0.001,0.01]"),
    ("ks", lambda v: bool(v) and min(v) >= 1, "whole numbers of at least 1, such as [1,5]"),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where a run keeps what it makes, and what it runs on."""

    out: str = ""
    """Run folder: config, metrics, checkpoints. Empty: runs/<command>-<date>-<time>."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1, ..."""
    threads: int = 0
    """CPU threads for tensors; 0 leaves PyTorch's choice. Bit-identical resume needs the same number."""
    seed: int = 0
    """Every random draw of a run follows from this number."""

    def __post_init__(self) -> None:
        """Raise :class:`~mcn.errors.MCNError` for a number that its setting cannot be."""
        for names, holds, words in _RULES:
            for name in names.split():
                value = getattr(self, name, None)
                if value is not None and not holds(value):
                    flag = "top" if name == "ks" else name
                    raise MCNError(f"--{flag} is {value}: it should be {words}")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which videos, and how a clip is cut from one."""

    data: str = ""
    """Folder of the data set: UCF101, HMDB51, Kinetics-400, class folders, any videos, or prepared data."""
    split: Literal[1, 2, 3] = 1
    """Official split (row 56)."""
    validation: bool = False
    """Leave the test list alone: a fifth of the training list, whole source videos, is the test list."""
    classes: tuple[str, ...] = ()
    """Only videos of these classes, such as [Archery,Bowling]; empty: of all."""
    reader: Literal["auto", "decord", "pyav"] = "auto"
    """Video decoder; auto takes decord where its frames are right, else PyAV."""
    frames: int = 32
    """Frames a clip."""
    stride: int = 1
    """Step between sampled frames, in frames of the video (row 18: 1)."""
    size: int = 128
    """Height and width of a clip, in pixels."""
    workers: int = min(4, usable_cores())
    """Processes that decode videos; 0 decodes in the main process. Default: 4, at most the usable cores."""
    max_bad: float = 0.05
    """Largest share of videos that may turn out unreadable before the run stops."""
    read_timeout: float = 60.0
    """Seconds without a sign of life from a decoder after which a file counts as unreadable."""


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """The network of Fig. 2."""

    backbone: Literal["r3d_18", "r2plus1d_18", "r3d_10", "r2plus1d_10", "r3d_small", "s3d"] = "r3d_18"
    """3-D CNN; r3d_small is r3d_10 at a quarter of its width."""
    width: int | None = None
    """Channels of the backbone's first stage; empty: the backbone's own."""
    dim: int = 128
    """Width of the embedding that is contrasted (row 4)."""
    projection: Literal["linear", "mlp", "none"] = "linear"
    """Layers between backbone and embedding (row 4)."""
    head: Literal["mlp", "linear"] = "mlp"
    """Meta head; linear is the paper's literal single layer, which cannot work (row 33)."""
    fcm_input: Literal["embedding", "normalised", "pooled"] = "embedding"
    """Feature that FCM pairs up (row 32)."""
    fcm_group: int = 4
    """Videos a group of FCM (paper: 4)."""
    fcm_pairing: Literal["cross", "all"] = "cross"
    """cross: the 16 RGB-residual pairs of a group; all: its 28 pairs (row 30)."""
    sharing: Literal["shared", "separate"] = "shared"
    """One set of backbone weights for both views, or one each (row 1)."""
    statistics: Literal["per_view", "mixed"] = "per_view"
    """BatchNorm running statistics a view, or of both together (row 1)."""
    view2: Literal["residual", "signed_residual", "flow_u", "flow_v"] = "residual"
    """Second view (row 14); the flow views read stored flow images (DATA/flow)."""


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Eq. 2 to 5 and the feature bank."""

    tau: float = 0.07
    """Temperature of Eq. 3 (row 9)."""
    negatives: int = 1024
    """Negatives k drawn from the bank for each video; 0, or as many as there are, takes all (row 8)."""
    positive: Literal["bank", "current"] = "bank"
    """Positive of Eq. 2: the other view's bank row, or its current feature (row 11)."""
    directions: Literal["sum", "mean", "one"] = "sum"
    """RGB to view 2 and back: both summed, averaged, or the first alone (row 6)."""
    bank_momentum: float = 0.5
    """Share of the old row that a bank update keeps (row 10)."""
    bank_update: Literal["both", "query"] = "both"
    """Which stage's features enter the bank (row 13)."""
    cls_weight: float = 0.2
    """alpha of Eq. 5; 0 trains on contrast alone."""
    cls_reduction: Literal["sum", "mean"] = "sum"
    """Eq. 4 summed over a group's pairs, as written, or averaged (row 34)."""


@dataclass(frozen=True, kw_only=True)
class MetaConfig:
    """The two-stage update."""

    order: Literal["exact", "first", "none"] = "exact"
    """Meta-gradient: exact second order, first order, or no meta stages at all (row 24)."""
    method: Literal["auto", "fast", "balanced", "lean"] = "auto"
    """Way to the exact order: fast, less memory at any loss, least memory; auto: fast where it fits."""
    inner_steps: int = 1
    """Gradient steps on the support batch (row 25)."""
    inner_lr: float | None = None
    """alpha_1; empty follows the learning rate, as the paper does (row 26)."""
    inner_clip: float | None = None
    """Largest norm of an inner step's gradient, to which a longer one is shortened; empty: no limit."""
    first_order_until: float = 0.0
    """Share of the run that takes the first order before the exact one begins, as MAML++ does."""
    redraw: bool = True
    """Whether support and query halves are drawn anew each epoch, or once for the run (row 20)."""
    norm_update: Literal["both", "query"] = "both"
    """Whose pass enters BatchNorm's running statistics (row 36)."""
    outer_support_weight: float = 0.0
    """Weight of the support loss in the outer update (row 22: 0)."""
    task: Literal["batch", "share"] = "batch"
    """What an inner update adapts to: the whole batch, or each share alone, another algorithm (row 38)."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """SGD and its schedule."""

    batch_size: int = 28
    """Videos a batch B; with meta stages a step takes B support and B query videos."""
    shares: int = 0
    """Parts of a batch, each with BatchNorm, FCM groups and negatives of its own; 0: one a process (row 38).
    One process takes them in turn, in the memory of one (but for --method fast)."""
    epochs: int = 500
    """Passes over the training list (both halves; row 21)."""
    lr: float = 0.01
    """Learning rate at the start; alpha_2 of the meta update."""
    momentum: float = 0.9
    """SGD momentum (row 28)."""
    weight_decay: float = 0.001
    """L2 penalty (row 55)."""
    decay_norm: bool = True
    """Whether the penalty is also on BatchNorm and biases, as in the peers (row 55)."""
    schedule: Literal["steps", "cosine", "constant"] = "steps"
    """steps: times .1 at each milestone; cosine: down to 0 (row 28)."""
    milestones: tuple[float, ...] = (0.5, 0.667, 0.833)
    """Where the steps are, as shares of the run."""
    warmup: float = 0.0
    """Share of the run over which the rate rises linearly from 0."""


@dataclass(frozen=True, kw_only=True)
class LoopConfig(RunConfig, DataConfig, OptimConfig):
    """Any training run."""

    augment: bool = True
    """Random crop, flip, colour jitter and blur; off: centre crop."""
    checkpoint_every: int = 200
    """Steps between checkpoints (one is always written at the end)."""
    keep: int = 2
    """Checkpoints kept."""


@dataclass(frozen=True, kw_only=True)
class PrecisionConfig:
    """Precision and memory order of the network; :mod:`mcn.composes` has what goes together."""

    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "auto"
    """Of convolutions and products; auto: fp32 on a CPU and for features, tf32 for training on a GPU."""
    channels_last: bool = False
    """Weights and activations with channels as the fastest axis in memory (channels_last_3d)."""
    compile: bool = False
    """Whether torch.compile compiles the backbone; minutes before the first step, not for the exact order."""


@dataclass(frozen=True, kw_only=True)
class TrainPrecisionConfig(PrecisionConfig):
    """The same for what is trained whole."""

    checkpointing: bool = False
    """Compute the backbone's blocks again on the way back instead of keeping what lies inside them."""


@dataclass(frozen=True, kw_only=True)
class StartConfig:
    """The pre-trained backbone that an evaluation starts from."""

    checkpoint: str = ""
    """Pre-training checkpoint, run folder or other weights (as init_from, row 29); empty: untrained."""
    backbone: Literal["r3d_18", "r2plus1d_18", "r3d_10", "r2plus1d_10", "r3d_small", "s3d"] = "r3d_18"
    """Backbone when there is no checkpoint of mcn (which knows its own)."""
    width: int | None = None
    """Width when there is no checkpoint of mcn."""
    clips: int = 10
    """Clips a video in evaluation, spread evenly (row 41)."""
