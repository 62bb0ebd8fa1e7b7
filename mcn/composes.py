"""What goes together: order, method, precision, compiler, checkpointing, memory order, command, device.

One table, :data:`NO` and :data:`YES`. A combination that a line of :data:`NO` names is refused with that
line's sentence; one that no line of :data:`YES` names is refused as untested. A line of :data:`YES` says by
which test it is held, or that it has none. Nothing here was run on a GPU: lines for one say so, and name
what was measured on a CPU in their stead.
"""

from dataclasses import dataclass
from typing import Any

import torch

from mcn.errors import MCNError
from mcn.precision import resolved
from mcn.run import choose_device
from mcn.settings import PrecisionConfig

Facts = dict[str, Any]
HALF = ("bf16", "fp16")
TRAINED = ("pretrain", "finetune", "probe")  #: probe: the headline recipe, a layer on a frozen backbone
PLAIN = ("first", "none")  #: orders with one derivative
UNSTEADY = ("r2plus1d_18", "r2plus1d_10", "s3d")  #: whose H v in bf16 has a cosine under .9 with fp32's
_TESTS = "tests/unit/test_composes.py::"


@dataclass(frozen=True)
class Line:
    """Settings and the values it is about (others: any), and what is said of them."""

    about: dict[str, tuple[Any, ...]]
    said: str
    test: str = ""  #: that proves it; empty: none

    def holds(self, facts: Facts) -> bool:
        """Whether it is about these facts."""
        return all(facts[name] in values for name, values in self.about.items())


NO: tuple[Line, ...] = (
    Line(
        {"precision": ("tf32",), "device": ("cpu", "other")},
        "--precision tf32 is a mode of NVIDIA GPUs: leave it out, or give --precision fp32",
    ),
    Line(
        {"precision": ("tf32",), "command": ("features",)},
        "--precision tf32 would make a feature depend on the batch that it was computed in: features take "
        "fp32, bf16 or fp16",
    ),
    Line(
        {"precision": ("fp16",), "device": ("cpu",)},
        "--precision fp16 on a CPU takes many times as long as fp32: leave it out, or give --precision bf16",
    ),
    Line(
        {"precision": HALF, "device": ("other",)},
        "--precision bf16 and fp16 are for CPUs and NVIDIA GPUs: give --precision fp32",
    ),
    Line(
        {"precision": ("fp16",), "order": ("exact",)},
        "--precision fp16 is not proved for the Hessian product of --order exact (it was not a number where "
        "it was tried): give --precision tf32, or --order first",
    ),
    Line(
        {"precision": ("bf16",), "device": ("cpu",), "command": ("pretrain", "finetune")},
        "--precision bf16 gives wrong gradients of 3-D convolutions on some CPUs (1e32 times too large, or "
        "not a number): train in fp32 on a CPU",
    ),
    Line(
        {"precision": ("bf16",), "order": ("exact",), "method": ("balanced", "lean", "auto")},
        "--method balanced and lean compute in one precision, and auto may choose them: with --precision "
        "bf16 give --method fast, or --order first",
    ),
    Line(
        {"precision": ("bf16",), "order": ("exact",), "backbone": UNSTEADY},
        "--precision bf16 with --order exact is for r3d_small, r3d_10 and r3d_18: the Hessian product of "
        "other backbones is too much rounding (cosine with fp32's: r2plus1d_10 .81, r2plus1d_18 .29, "
        "s3d .03), give --precision tf32",
    ),
    Line(
        {"compile": (True,), "order": ("exact",)},
        "--compile has no second derivative, which --order exact takes: leave it out, or give --order first",
    ),
    Line(
        {"compile": (True,), "checkpointing": (True,)},
        "--compile takes a backbone whole, --checkpointing takes it block by block: leave out one of them",
    ),
    Line(
        {"compile": (True,), "feature": ("conv5",)},
        "--compile compiles what gives pooled features, and --feature conv5 is taken before: leave it out",
    ),
    Line(
        {"checkpointing": (True,), "order": ("exact",), "method": ("fast",)},
        "--checkpointing saves nothing with --method fast, whose graph keeps on the way back what was not "
        "kept on the way forth: give --method lean",
    ),
    Line(
        {"checkpointing": (True,), "order": ("exact",), "method": ("balanced",)},
        "--checkpointing saves nothing with --method balanced, which keeps what lies inside blocks for its "
        "Hessian product: give --method lean",
    ),
    Line(
        {"checkpointing": (True,), "order": ("exact",), "method": ("auto",)},
        "--checkpointing hides from --method auto how much memory a graph takes: give --method lean",
    ),
)

YES: tuple[Line, ...] = (
    Line(
        {"command": ("pretrain",), "precision": ("fp32",), "device": ("cpu",)},
        "one step in float64 moves the parameters as without compiler, checkpointing and channels_last, "
        "to 1e-9; fp32 is the same code. Checkpointing with lean, r3d_18 on 2 videos of 8 x 64 x 64: peak of "
        "515 MiB for 551, 6.5 % less",
        _TESTS + "test_every_yes_of_pretraining_makes_the_same_step",
    ),
    Line(
        {"command": ("finetune", "probe"), "precision": ("fp32",), "device": ("cpu",)},
        "one step in float64 moves the parameters and running statistics as the plain one does, to 1e-9",
        _TESTS + "test_every_yes_of_fine_tuning_makes_the_same_step",
    ),
    Line(
        {"command": ("features",), "precision": ("fp32",), "device": ("cpu",)},
        "features in float64 are those of the plain network, to 1e-9",
        _TESTS + "test_every_yes_of_features_gives_the_same",
    ),
    Line(
        {"command": ("features", "probe"), "precision": ("bf16",), "device": ("cpu",)},
        "the frozen backbone alone: features differ from fp32's by their rounding (measured at a reduced "
        "width: r3d_18 1.0 %, r2plus1d_18 4.9 %, in .6 and .5 of the time; s3d not measured)",
        _TESTS + "test_features_in_bf16_differ_by_their_rounding",
    ),
    Line(
        {"precision": ("fp32", "tf32"), "device": ("cuda",)},
        "not measured: needs a GPU; for fp32 on a CPU see above",
        _TESTS + "test_a_step_on_a_gpu",
    ),
    Line(
        {"command": ("features", "probe"), "precision": HALF, "device": ("cuda",)},
        "not measured: needs a GPU; bf16 on a CPU see above, fp16 nowhere",
    ),
    Line(
        {"command": ("pretrain", "finetune"), "precision": ("fp16",), "order": PLAIN, "device": ("cuda",)},
        "not measured: needs a GPU; the same code on PyTorch's own convolutions on a CPU, with a loss scale, "
        "gives g_s of a small smooth network to 1 %",
        _TESTS + "test_gradients_in_half_of_a_smooth_network",
    ),
    Line(
        {"command": ("pretrain",), "precision": ("bf16",), "device": ("cuda",)},
        "not measured: needs a GPU; the same code on PyTorch's own convolutions on a CPU gives g_s, g_q and "
        "H v at given theta, theta-bar and v of smooth networks to 1.5-3.4 %, cosines of .999 (r3d_small, "
        "r3d_18, r2plus1d_18, r3d_10, r2plus1d_10 at width 8); with ReLUs cosines of .98, .95, .58, .98 and "
        ".90, of H v .97, .90, .29, .97 and .81. s3d at its own width, whose last maps are one point at this "
        "size: .91 and .79 where it is smooth, with ReLUs .03 to .6 and .03",
        _TESTS + "test_gradients_in_half_of_a_smooth_network",
    ),
    Line(
        {"command": ("finetune",), "precision": ("bf16",), "device": ("cuda",)},
        "not measured: needs a GPU",
    ),
    Line(
        {"precision": ("fp32",), "device": ("other",), "compile": (False,)},
        "not tested: no such device at hand; PyTorch's own operations alone",
    ),
)

#: Said of what is allowed and yet to be known.
WARNED: tuple[Line, ...] = (
    Line(
        {"precision": ("bf16",), "order": ("exact",)},
        "note: the Hessian product in bf16 has a cosine of .97 (r3d_small, r3d_10) and .90 (r3d_18) with "
        "that in fp32, measured on untrained networks at a reduced width",
    ),
    Line(
        {"precision": ("bf16",), "order": PLAIN, "command": ("pretrain",), "backbone": UNSTEADY},
        "note: this backbone's gradient in bf16 may be mostly rounding (untrained, at a reduced width: "
        "s3d's has a cosine of .03 to .6 with fp32's, r2plus1d_18's .58, r2plus1d_10's .90, r3d_18's .95)",
    ),
)


def check_together(command: str, config: PrecisionConfig, device: torch.device | str | None = None) -> None:
    """Refuse settings that do not go together, and say in a line what is to be known of others.

    ``command`` is ``pretrain``, ``finetune``, ``probe`` (the headline recipe) or ``features`` (all that takes
    kept features). ``device`` is by default the config's. Raises :class:`~mcn.errors.MCNError`.
    """
    facts = facts_of(command, config, device or choose_device(getattr(config, "device", "auto")))
    for line in NO:
        if line.holds(facts):
            raise MCNError(line.said)
    if not any(line.holds(facts) for line in YES):
        raise MCNError(f"{_in_words(facts)}: not tested together, so refused")
    for line in WARNED:
        if line.holds(facts):
            print(line.said)


def facts_of(command: str, config: PrecisionConfig, device: torch.device | str) -> Facts:
    """What the table looks at.

    >>> facts_of("features", PrecisionConfig(precision="bf16"), "cpu")["precision"]
    'bf16'
    """
    kind = torch.device(device).type
    order = getattr(config, "order", "none") if command == "pretrain" else "none"
    return {
        "command": command,
        "device": kind if kind in ("cpu", "cuda") else "other",
        "order": order,
        "method": getattr(config, "method", "auto") if order == "exact" else "",
        "precision": resolved(config, device, training=command in TRAINED).name,
        "channels_last": config.channels_last,
        "compile": config.compile,
        "checkpointing": getattr(config, "checkpointing", False),
        "feature": getattr(config, "feature", "pooled"),
        "backbone": getattr(config, "backbone", ""),
    }


def _in_words(facts: Facts) -> str:
    return " ".join(f"{name} {value}" for name, value in facts.items() if value not in ("", False))
