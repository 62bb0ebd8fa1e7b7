"""Functions on several ranks: processes that meet as those of ``torchrun`` do, on this machine."""

import dataclasses
import io
import os
import signal
import socket
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch

from mcn import distributed
from mcn.cli import main
from mcn.config import PretrainConfig, build, load_preset
from mcn.data.loader import Clip
from mcn.data.plan import Request, Step, share_of
from mcn.errors import MCNError
from mcn.optim import order_at
from mcn.pretrain import Pretraining

VIDEOS = 24


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def on_ranks(processes: Any, size: int, folder: Path, function: Callable[..., Any], *args: Any) -> list[Any]:
    """What ``function`` gives on each of ``size`` ranks."""
    started = start_on_ranks(processes, size, folder, function, *args)
    for process in started:
        process.join(120)
    assert [process.exitcode for process in started] == [0] * size
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(size)]


def start_on_ranks(
    processes: Any, size: int, folder: Path, function: Callable[..., Any], *args: Any
) -> list[Any]:
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    return [processes.start(_rank, rank, size, port, folder, function, args) for rank in range(size)]


def _rank(rank: int, size: int, port: int, folder: Path, function: Any, args: Any) -> None:
    numbers = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size}
    places = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in {**numbers, **places}.items()})
    torch.set_num_threads(1)
    torch.save(function(*args), folder / f"{rank}.pt")
    distributed.leave_ranks()


def clips(videos: list[int], seed: int) -> list[Clip]:
    random = torch.Generator().manual_seed(seed)
    return [
        Clip(torch.randint(256, (5, 24, 24, 3), dtype=torch.uint8, generator=random), None, None, v, ())
        for v in videos
    ]


def trained_in_double(settings: list[dict[str, Any]], steps: int = 3) -> list[dict[str, Any]]:
    """The state and the last numbers of a few float64 steps with each of the settings."""
    return [_trained(changes, steps) for changes in settings]


def _trained(changes: dict[str, Any], steps: int) -> dict[str, Any]:
    ranks = distributed.join_ranks("cpu")
    config = build(PretrainConfig, {**load_preset("smoke", "pretrain"), "device": "cpu", **changes})
    training = Pretraining(config, VIDEOS, "cpu", ranks)
    training.network.double()
    training.bank.double()
    size = config.batch_size
    for number in range(steps):
        # One video in two shares: a replaced clip does that, and the bank takes the mean.
        drawn = torch.randperm(VIDEOS, generator=torch.Generator().manual_seed(number)).tolist()
        drawn[size - 1], drawn[2 * size - 1] = drawn[0], drawn[size]
        both = [clips(drawn[:size], number), clips(drawn[size : 2 * size], number + 100)]
        places = [Request(position, 0, position) for position in range(size)]
        own = [request.position for request in share_of(Step([], places), ranks.rank, ranks.size).query]
        stages = []
        for stage, name in zip(both, ("support", "query"), strict=True):
            batches = training.batches([stage[position] for position in own], number, name)
            stages.append([_double(batch) for batch in batches])
        support, order = stages[0] if config.order != "none" else None, order_at(config, number, steps)
        numbers = training.update(support, stages[1], lr=0.03, order=order)
    state = training.state()
    momenta = {f"momentum {k}": v["momentum_buffer"] for k, v in state["optimizer"]["state"].items()}
    tensors = {**state["network"], **momenta, "bank": training.bank.rows}
    return {"tensors": {name: t.detach().clone() for name, t in tensors.items()}, "numbers": numbers}


def _double(batch: Any) -> Any:
    return dataclasses.replace(batch, view1=batch.view1.double(), view2=batch.view2.double())


def command(arguments: list[str], failing: str = "", rank: int = 1) -> tuple[int, str, str]:
    """Exit status, output and errors of a command; ``failing`` says how a rank dies at its third step."""
    output, errors = io.StringIO(), io.StringIO()
    if failing and os.environ["RANK"] == str(rank):
        _die_at_the_third_step(failing)
    with redirect_stdout(output), redirect_stderr(errors):
        status = main(arguments)
    return status, output.getvalue(), errors.getvalue()


def _die_at_the_third_step(how: str) -> None:
    step = Pretraining.step

    def dying(self: Pretraining, *args: Any) -> dict[str, float]:
        if args[2] == 2:
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise (MCNError("the disk is on fire") if how == "error" else KeyError("no such thing"))
        return step(self, *args)

    Pretraining.step = dying  # type: ignore[method-assign]


def commands(each: list[list[str]]) -> list[tuple[int, str, str]]:
    """Several commands, one after the other."""
    return [command(arguments) for arguments in each]
