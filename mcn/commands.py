"""The commands of ``mcn``: what each is called, takes and prints. What parses them is :mod:`mcn.cli`.

A command imports what it needs when it runs, so that ``mcn --help`` answers at once.
"""

import dataclasses
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from shlex import quote
from typing import Any, Literal

from mcn.config import (
    AblateConfig,
    AttendConfig,
    BenchConfig,
    EstimateConfig,
    EvalConfig,
    FinetuneConfig,
    PretrainConfig,
    ProbeConfig,
    RetrieveConfig,
)
from mcn.errors import MCNError


def _pretrain(config: PretrainConfig, _: Any) -> None:
    from mcn.pretrain import pretrain

    path = pretrain(config)
    print(f"run folder: {path}")
    print(f"next:       {_after_pretraining(config, path)}")


def _after_pretraining(config: PretrainConfig, path: Path) -> str:
    """A command that this data has what it takes for: a probe needs labels and a test list."""
    from mcn.data.datasets import load_videos

    where = f"--checkpoint {quote(str(path))} --data {quote(config.data)}"
    with suppress(MCNError):  # pre-training takes no test videos, so they may not be there
        if load_videos(config.data, "test", config.split).labels:
            return f"mcn probe {where}"
    return f"mcn retrieve --query VIDEO {where}"


def _finetune(config: FinetuneConfig, _: Any) -> None:
    from mcn.finetune import finetune, protocol

    path, found = finetune(config)
    if found:
        first, *others = found.lines(config.clips)
        print("\n".join([f"test list: {first}", *others]))
        print(f"protocol:  {protocol(config)}")
    print(f"run folder: {path}" + "   (test.json, classes.csv, confusion.csv)" * bool(found))
    print(f"next:       mcn predict VIDEO --checkpoint {path}")


def _probe(config: ProbeConfig, _: Any) -> None:
    from mcn.probe import headline_probe, protocol, run_probe

    if config.recipe == "headline":
        path, found = headline_probe(config)
        first, *others = found.lines(config.clips)
        print("\n".join([f"linear probe: {first}", *others]))
        print(f"protocol:     {protocol(config)}")
        print(f"run folder: {path}   (test.json, classes.csv, confusion.csv)")
        return
    result = run_probe(config)
    print(f"linear probe: top-1 {result.top1:.1f} % of {result.videos} videos (chance {result.chance:.1f} %)")
    print(f"protocol:     {protocol(config)}")
    _record(config, "probe", dataclasses.asdict(result))


def _retrieve(config: RetrieveConfig, args: Any) -> None:
    from mcn.retrieval import protocol, run_retrieval

    if args.query:
        from mcn.lookup import look_up

        for line in look_up(config, Path(args.query), args.index, args.sheet):
            print(line)
        return
    result = run_retrieval(config)
    shown = ", ".join(f"top-{k} {value:.1f} %" for k, value in result.accuracy.items())
    print(f"retrieval: {shown} ({result.queries} queries)")
    print(f"protocol:  {protocol(config)}")
    if args.sheet:
        from mcn.retrieval_plots import fig_4

        print(f"sheet:     {fig_4(config, result, args.beside, Path(args.sheet))}")
    _record(config, "retrieve", {f"top{k}": value for k, value in result.accuracy.items()})


def _features(config: EvalConfig, args: Any) -> None:
    from mcn.features import features_of, save_features

    config = dataclasses.replace(config, data=args.folder)
    features = features_of(config, args.subset, share=(args.rank, args.world))
    if args.world > 1:
        made = int(features.readable.sum())
        print(f"{made} of {len(features.x)} videos have features; without --rank this writes {args.output}")
        return
    save_features(features, Path(args.output))
    print(f"{args.output}: features {tuple(features.x.shape)} of {len(features.x)} videos ({args.subset})")


def _attend(config: AttendConfig, args: Any) -> None:
    from mcn.attend import draw

    if args.video:
        for line in draw(config, args.video, Path(args.output)):
            print(line)
        return
    if not config.data:
        raise MCNError("give video files to draw, or --data (and --subset) to measure a list of videos")
    from mcn.files import write_text
    from mcn.motion import measure, protocol

    found = measure(config, args.subset)
    for line in [*found.lines(config.seed), f"protocol: {protocol(config)}"]:
        print(line)
    if args.output:
        write_text(Path(args.output), found.table())
        print(f"{args.output}: a line a video")
    _record(config, "attend", found.numbers(config.seed))


def _predict(_: Any, args: Any) -> None:
    from mcn.finetune import predict

    for name, probability in predict(args.video, args.checkpoint, args.device)[: args.top]:
        print(f"{100 * probability:5.1f} %  {name}")


def _export(_: Any, args: Any) -> None:
    from mcn.export import export_backbone

    path = export_backbone(args.checkpoint, Path(args.output), args.view)
    print(f"{path}: backbone weights for the {args.view} view, with torchvision's names")


def _ablate(config: AblateConfig, args: Any) -> None:
    from mcn.ablation import ablate
    from mcn.tables import render

    number = args.table.removeprefix("table")
    records = ablate(config, number)
    print(render(int(number), records=records))


def _doctor(config: PretrainConfig, args: Any) -> None:
    from mcn.doctor import diagnose

    for line in diagnose(dataclasses.replace(config, data=args.folder), args.seconds).lines():
        print(line)


def _bench(config: BenchConfig, _: Any) -> None:
    from mcn.bench_records import run

    run(config)


def _estimate(config: EstimateConfig, _: Any) -> None:
    from mcn.estimate import run

    run(config)


def _table(_: Any, args: Any) -> None:
    from mcn.results import load_records
    from mcn.tables import render

    print(render(args.number, args.format, load_records(args.results) if args.results else None), end="")


def _demo(_: Any, args: Any) -> None:
    from mcn.demo import demo

    demo(Path(args.out), profile=args.preset, seed=args.seed)


def _record(
    config: ProbeConfig | RetrieveConfig | AttendConfig, command: str, result: dict[str, float]
) -> None:
    """Keep a result in a run folder, with the settings and versions it was made with."""
    from mcn.run import RunFolder

    run = RunFolder(config, command)
    run.rewind_metrics(0)
    run.log(1, **result)
    run.write_json("result.json", result)
    run.close()
    print(f"run folder: {run.path}")


@dataclasses.dataclass(frozen=True)
class Command:
    """One command: its function of settings and arguments, its line of help, its settings and arguments.

    ``block`` is a preset's block of settings that it takes, where that is not the one of its own name.
    """

    run: Callable[[Any, Any], None]
    help: str
    config: type | None = None
    arguments: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = ()
    block: str = ""


def _argument(*names: str, **options: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    return names, options


COMMANDS = {
    "demo": Command(
        _demo,
        "built-in data, contrast and MCN, one table and pictures: minutes on two cores",
        arguments=(
            _argument(
                "--out", type=str, default="runs/demo", help="run folder; an interrupted demo continues there"
            ),
            _argument("--preset", type=Literal["laptop", "smoke"], default="laptop", help="size of the demo"),
            _argument("--seed", type=int, default=0, help="seed of data and runs"),
        ),
    ),
    "pretrain": Command(_pretrain, "self-supervised pre-training on a folder of videos", PretrainConfig),
    "probe": Command(
        _probe, "linear probe of frozen features: quick (cached) or headline (to compare)", ProbeConfig
    ),
    "finetune": Command(
        _finetune, "supervised fine-tuning, of a checkpoint or --from_scratch", FinetuneConfig
    ),
    "retrieve": Command(
        _retrieve,
        "nearest neighbours: test videos ask, training videos answer; or those of one file",
        RetrieveConfig,
        arguments=(
            _argument(
                "--query", type=str, default="", help="video file whose nearest in all of --data are shown"
            ),
            _argument(
                "--index",
                type=str,
                default="",
                help="file (.npz) that keeps the features --query searches; used again while they are true",
            ),
            _argument("--sheet", type=str, default="", help="picture to write: as the paper's Fig. 4"),
            _argument(
                "--beside",
                type=str,
                default="",
                help="checkpoint whose answers the sheet shows beside, or untrained",
            ),
        ),
    ),
    "features": Command(
        _features,
        "one feature a video of a folder, as .npz",
        EvalConfig,
        arguments=(
            _argument("folder", type=str, help="folder of videos"),
            _argument("-o", "--output", type=str, required=True, help="file to write (.npz)"),
            _argument("--subset", type=Literal["all", "train", "test"], default="all", help="which list"),
            _argument("--rank", type=int, default=0, help="which share of the videos, from 0 to world - 1"),
            _argument("--world", type=int, default=1, help="shares that are made, each by its own process"),
        ),
    ),
    "attend": Command(
        _attend,
        "where a network looks: activation maps of videos, or how well they cover motion over a list",
        AttendConfig,
        arguments=(
            _argument("video", type=str, nargs="*", help="video files to draw; none: --data is measured"),
            _argument(
                "-o",
                "--output",
                type=str,
                default="",
                help="picture (.png, .pdf, .svg) or video (.mp4) of the files; table (.csv) of the list",
            ),
            _argument("--subset", type=Literal["all", "train", "test"], default="test", help="which list"),
        ),
    ),
    "predict": Command(
        _predict,
        "classes of one video by a fine-tuned network",
        arguments=(
            _argument("video", type=str, help="video file"),
            _argument("--checkpoint", type=str, required=True, help="run folder or .pt of mcn finetune"),
            _argument("--device", type=str, default="auto", help="auto, cpu, cuda, ..."),
            _argument("--top", type=int, default=5, help="classes to print"),
        ),
    ),
    "ablate": Command(
        _ablate,
        "the rows of one of the paper's tables 1 to 5, with several seeds, recorded",
        AblateConfig,
        arguments=(_argument("table", type=str, help="table1 to table5"),),
    ),
    "doctor": Command(
        _doctor,
        "what limits a run on this machine, measured, and what to do about it",
        PretrainConfig,
        arguments=(
            _argument("folder", type=str, help="the data set's folder"),
            _argument("--seconds", type=float, default=5.0, help="how long each stage is timed"),
        ),
        block="pretrain",
    ),
    "bench": Command(
        _bench,
        "time and memory of a training step, every way to its gradient beside the others",
        BenchConfig,
        arguments=(_argument("what", type=Literal["step"], help="what is measured"),),
        block="pretrain",
    ),
    "estimate": Command(_estimate, "hours and memory of the paper's runs on this device", EstimateConfig),
    "export": Command(
        _export,
        "backbone weights as safetensors, with torchvision's names",
        arguments=(
            _argument("checkpoint", type=str, help="run folder or .pt"),
            _argument("-o", "--output", type=str, required=True, help="file to write (.safetensors)"),
            _argument(
                "--view", type=Literal["rgb", "second"], default="rgb", help="whose running statistics"
            ),
        ),
    ),
    "table": Command(
        _table,
        "a table of the paper, what was measured here for it, and what differs",
        arguments=(
            _argument("number", type=int, help="number of the paper's table, 1 to 10"),
            _argument(
                "--format",
                type=Literal["text", "markdown", "html", "latex"],
                default="text",
                help="text fits a terminal of 100 columns",
            ),
            _argument(
                "--results",
                type=str,
                default=None,
                help="folder of measured records; without one, book/results of the checkout mcn runs from",
            ),
        ),
    ),
}
