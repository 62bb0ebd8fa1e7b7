"""The commands of ``mcn``: what each is called, takes and prints. What parses them is :mod:`mcn.cli`.

Those that evaluate a network are in :mod:`mcn.evaluation_commands`. A command imports what it needs when it
runs, so that ``mcn --help`` answers at once.
"""

from contextlib import suppress
from pathlib import Path
from shlex import quote
from typing import Any, Literal

from mcn._command import Command, argument, of_folder
from mcn.config import AblateConfig, BenchConfig, EstimateConfig, PretrainConfig
from mcn.errors import MCNError
from mcn.evaluation_commands import EVALUATIONS


def _pretrain(config: PretrainConfig, _: Any) -> None:
    from mcn.pretrain import pretrain

    path = pretrain(config)
    print(f"run folder: {path}")
    print(f"next:       {_after_pretraining(config, path)}")


def _after_pretraining(config: PretrainConfig, path: Path) -> str:
    """A command that this data has what it takes for: a probe needs labels and a test list."""
    from mcn.holdout import videos_of

    where = f"--checkpoint {quote(str(path))} --data {quote(config.data)}"
    with suppress(MCNError):  # pre-training takes no test videos, so they may not be there
        if videos_of(config, "test").labels:
            return f"mcn probe {where}"
    return f"mcn retrieve --query VIDEO {where}"


def _export(_: Any, args: Any) -> None:
    from mcn.export import export_backbone

    path = export_backbone(args.checkpoint, Path(args.output), args.view)
    print(f"{path}: backbone weights for the {args.view} view, with torchvision's names")


def _ablate(config: AblateConfig, args: Any) -> None:
    from mcn.ablation import ablate
    from mcn.tables import render
    from mcn.tuning import chosen, lines

    number = args.table.removeprefix("table")
    records = ablate(config, number)
    if config.subset == "held-out":
        print("\n".join(["on held-out training videos, to choose step sizes by:", *lines(records)]))
    else:
        print(render(int(number), records=records))
        for line in chosen(records):
            print(line)


def _doctor(config: PretrainConfig, args: Any) -> None:
    from mcn.doctor import diagnose

    for line in diagnose(of_folder(config, args.folder), args.seconds).lines():
        print(line)


def _bench(config: BenchConfig, _: Any) -> None:
    from mcn.bench_records import run

    run(config)


def _estimate(config: EstimateConfig, _: Any) -> None:
    from mcn.estimate import run

    run(config)


def _table(_: Any, args: Any) -> None:
    from mcn.results import load_records, own_records
    from mcn.significance import comparison
    from mcn.tables import render

    records = load_records(args.results) if args.results else own_records()
    if args.compare:
        print("\n".join(comparison(records, args.number, args.compare.split(","))))
    else:
        print(render(args.number, args.format, records), end="")


def _demo(_: Any, args: Any) -> None:
    from mcn.demo import demo

    demo(Path(args.out), profile=args.preset, seed=args.seed)


#: Every command by name, in the order of ``mcn --help``.
COMMANDS = {
    "demo": Command(
        _demo,
        "built-in data, contrast and MCN, one table and pictures: minutes on two cores",
        arguments=(
            argument(
                "--out", type=str, default="runs/demo", help="run folder; an interrupted demo continues there"
            ),
            argument("--preset", type=Literal["laptop", "smoke"], default="laptop", help="size of the demo"),
            argument("--seed", type=int, default=0, help="seed of data and runs"),
        ),
    ),
    "pretrain": Command(_pretrain, "self-supervised pre-training on a folder of videos", PretrainConfig),
    **EVALUATIONS,
    "ablate": Command(
        _ablate,
        "the rows of one of the paper's tables 1 to 5, with several seeds, recorded",
        AblateConfig,
        arguments=(argument("table", type=str, help="table1 to table5"),),
        presets=False,  # --profile names the preset whose settings the rows change
    ),
    "doctor": Command(
        _doctor,
        "what limits a run on this machine, measured, and what to do about it",
        PretrainConfig,
        arguments=(
            argument("folder", type=str, help="the data set's folder"),
            argument("--seconds", type=float, default=5.0, help="how long each stage is timed"),
        ),
        block="pretrain",
    ),
    "bench": Command(
        _bench,
        "time and memory of a training step, every way to its gradient beside the others",
        BenchConfig,
        arguments=(argument("what", type=Literal["step"], help="what is measured"),),
        block="pretrain",
    ),
    "estimate": Command(_estimate, "hours and memory of the paper's runs on this device", EstimateConfig),
    "export": Command(
        _export,
        "backbone weights as safetensors, with torchvision's names",
        arguments=(
            argument("checkpoint", type=str, help="run folder or .pt"),
            argument("-o", "--output", type=str, required=True, help="file to write (.safetensors)"),
            argument("--view", type=Literal["rgb", "second"], default="rgb", help="whose running statistics"),
        ),
    ),
    "table": Command(
        _table,
        "a table of the paper, what was measured here for it, and what differs",
        arguments=(
            argument("number", type=int, help="number of the paper's table, 1 to 10"),
            argument(
                "--format",
                type=Literal["text", "markdown", "html", "latex"],
                default="text",
                help="text fits a terminal of 100 columns",
            ),
            argument("--results", type=str, help="folder of records; without one, book/results"),
            argument("--compare", type=str, default="", help="rows to compare instead, such as contrast,mcn"),
        ),
    ),
}
