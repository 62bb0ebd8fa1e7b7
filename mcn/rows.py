"""The rows of the paper's Tables 1 to 5, and rows beyond them, as changes to one set of settings."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

CONTRAST: dict[str, Any] = {"order": "none", "cls_weight": 0.0}
BINARY: dict[str, Any] = {"order": "none"}
FIRST: dict[str, Any] = {"order": "first"}
EXACT: dict[str, Any] = {"order": "exact"}
_REPRESENTATION = ("probe", "headline", "retrieval", "motion")


@dataclass(frozen=True)
class Row:
    """A line of a table: its name in the records, and what it changes in the profile's settings."""

    name: str
    #: ``None`` for a network that is not pre-trained
    settings: dict[str, Any] | None = field(default_factory=dict)
    #: Settings that are a multiple of the profile's (the paper's 16 and 64 frames: 1/2 and 2 times its 32).
    times: dict[str, float] = field(default_factory=dict)
    #: The row of Table 5 whose step sizes it takes where they are tuned; empty: none are to be chosen.
    like: str = "mcn"
    #: What it can be evaluated by; empty: everything.
    only: tuple[str, ...] = ()
    #: The row of Table 5 whose pre-trained network of the same seed it starts from; empty: from chance.
    after: str = ""


def _pairs(of: Iterable[tuple[str, dict[str, Any], dict[str, float]]]) -> tuple[Row, ...]:
    """Baseline and MCN for each of some settings."""
    return tuple(
        Row(f"{method}-{name}", {**settings, **change}, times, like)
        for name, change, times in of
        for method, settings, like in (("baseline", CONTRAST, "contrast"), ("mcn", EXACT, "mcn"))
    )


_BACKBONES = _pairs(
    (name, {"backbone": name, "width": None}, {}) for name in ("s3d", "r2plus1d_18", "r3d_18")
)

#: The rows of each of the paper's tables, under their names in ``mcn/paper_tables.yaml``; in Table 5 those
#: that the paper does not have follow.
#:
#: An epoch of ``D`` videos is ``D / B`` updates of ``contrast`` and ``D / 2B`` of ``mcn``, which sees as many
#: clips. ``contrast-same-updates`` has both in common with ``mcn``: it takes batches of ``2B``.
#: ``contrast-twice-as-long`` sees twice the clips, to make up for what the exact order costs beyond its
#: clips; how nearly the compute is the same is in the records (``curve.seconds``).
TABLES: dict[str, tuple[Row, ...]] = {
    "1": _BACKBONES,
    "2": _BACKBONES,
    "3": tuple(Row(f"alpha-{alpha}", {**EXACT, "cls_weight": alpha}) for alpha in (0.1, 0.2, 0.3, 0.4)),
    "4": _pairs((name, {}, {"frames": times}) for name, times in (("16", 0.5), ("32", 1.0), ("64", 2.0))),
    "5": (
        Row("contrast", CONTRAST, like="contrast"),
        Row("contrast-binary", BINARY, like="contrast-binary"),
        Row("mcn", EXACT),
        Row("mcn-first-order", FIRST, like="mcn-first-order"),
        Row("untrained", None, like="", only=_REPRESENTATION),
        Row("from-scratch", None, like="", only=("finetune",)),
        Row("contrast-same-updates", CONTRAST, {"batch_size": 2}, like="contrast"),
        Row("contrast-twice-as-long", CONTRAST, {"epochs": 2}, like="contrast"),
        Row("contrast-whole-bank", {**CONTRAST, "negatives": 0}, like="contrast"),
        Row("contrast-64-negatives", {**CONTRAST, "negatives": 64}, like="contrast"),
        Row("mcn-separate-backbones", {**EXACT, "sharing": "separate"}),
        Row("mcn-single-fc", {**EXACT, "head": "linear"}),
        Row("mcn-normalised-pairs", {**EXACT, "fcm_input": "normalised"}),
        Row("mcn-mean-reduction", {**EXACT, "cls_reduction": "mean"}),
        Row("mcn-support-loss", {**EXACT, "outer_support_weight": 1.0}),
        Row("mcn-warm-start", EXACT, after="contrast"),
        Row("mcn-annealed", {**EXACT, "first_order_until": 0.5}),
    ),
}
#: The rows that the others are compared with: of these the step sizes are tuned.
TUNED = ("contrast", "contrast-binary", "mcn", "mcn-first-order")


def rows_of(table: str) -> dict[str, Row]:
    """The rows of a table by name."""
    return {row.name: row for row in TABLES[table]}
