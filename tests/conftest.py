"""What several test files share: a tiny data set, tiny settings, and processes that can be killed."""

import multiprocessing
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from mcn.config import FinetuneConfig, PretrainConfig, ProbeConfig, RetrieveConfig, build, load_preset
from mcn.preparation.synthetic import SyntheticConfig, write_synthetic_actions

# A shell starts background jobs deaf to Ctrl-C, and their children inherit it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_CONFIGS = {
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
    "probe": ProbeConfig,
    "retrieve": RetrieveConfig,
}


@pytest.fixture(autouse=True)
def one_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tensors this small only wait for each other on several threads."""
    before = torch.get_num_threads()
    if request.node.get_closest_marker("benchmark") is None:
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def action_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 videos of 16 frames in UCF101's layout: 4 classes, 32 for training and 8 for testing."""
    settings = SyntheticConfig(classes=4, groups=10, clips_per_group=1, frames=16, size=32)
    return write_synthetic_actions(tmp_path_factory.mktemp("actions"), settings, workers=1)


@pytest.fixture
def own_data(action_data: Path, tmp_path: Path) -> Path:
    """A copy of the data set that a test may damage, without what other tests have found out about it."""
    ignored = shutil.ignore_patterns("mcn-index*")
    return Path(shutil.copytree(action_data, tmp_path / "own_data", ignore=ignored))


@pytest.fixture(scope="session")
def smoke_config(action_data: Path) -> Callable[..., Any]:
    """``smoke_config("pretrain", out=..., lr=...)``: the smoke preset on the tiny data set, with changes."""

    def make(command: str, **changes: Any) -> Any:
        fixed = {"data": str(action_data), "device": "cpu", "threads": 1}
        known = {**load_preset("smoke", command), **fixed, **changes}
        return build(_CONFIGS[command], {k: str(v) if isinstance(v, Path) else v for k, v in known.items()})

    return make


@pytest.fixture(scope="session")
def trained(smoke_config: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of a finished smoke pre-training."""
    from mcn.pretrain import pretrain

    return pretrain(smoke_config("pretrain", out=tmp_path_factory.mktemp("trained") / "run", epochs=1))


@pytest.fixture(scope="session")
def finetuned(
    smoke_config: Callable[..., Any], trained: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Run folder of a finished smoke fine-tuning."""
    from mcn.finetune import finetune

    out = tmp_path_factory.mktemp("finetuned") / "run"
    return finetune(smoke_config("finetune", out=out, epochs=1, checkpoint=trained))[0]


# Loader workers are forked, as they are in a run started from the command line.
_ENTRY = """
import multiprocessing
multiprocessing.set_start_method("fork", force=True)
function(*arguments)
"""


class Processes:
    """Starts functions in processes of their own, quickly: they are forked from one that has imported all."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["mcn.pretrain", "mcn.finetune"])
        self._started: list[BaseProcess] = []

    def start(self, function: Callable[..., object], *args: Any) -> BaseProcess:
        process = self._context.Process(target=exec, args=(_ENTRY, {"function": function, "arguments": args}))
        process.start()
        self._started.append(process)
        return process

    def finish(self, function: Callable[..., object], *args: Any) -> int | None:
        """Run to the end; gives the exit status (minus the signal that killed it)."""
        process = self.start(function, *args)
        process.join(120)
        return process.exitcode

    def kill(self, run: Path, steps: int, chance: random.Random, function: Any, *args: Any) -> None:
        """SIGKILL the process at a random moment after it has logged ``steps`` steps in ``run``."""
        process = self.start(function, *args)
        metrics, deadline = run / "metrics.jsonl", time.monotonic() + 60
        while process.is_alive() and time.monotonic() < deadline:
            if steps == 0 or (metrics.exists() and metrics.read_bytes().count(b"\n") >= steps):
                break
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.05))
        process.kill()
        process.join(30)

    def close(self) -> None:
        for process in self._started:
            if process.is_alive():
                process.kill()


@pytest.fixture(scope="session")
def processes() -> Iterator[Processes]:
    made = Processes()
    yield made
    made.close()
