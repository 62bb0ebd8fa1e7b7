"""A run folder: what was asked, on what, and what came out, step by step.

::

    runs/pretrain-20260101-120000/
        config.yaml        every setting, resolved; `--config` reads it back
        environment.json   versions, commit, device
        metrics.jsonl      one line a step; never a lost or doubled step, also after a crash
        tensorboard/       the same curves
        checkpoints/       the newest few
"""

import datetime
import json
import platform
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from mcn._torchvision import torchvision
from mcn._version import __version__
from mcn.checkpoint import latest_checkpoint
from mcn.config import to_yaml
from mcn.distributed import Ranks, own_device
from mcn.errors import MCNError
from mcn.files import write_text
from mcn.settings import RunConfig

# Where a run is continued may change, and how it keeps its records; what it computes may not.
_MAY_CHANGE = {
    "out", "device", "threads", "workers", "max_bad", "read_timeout", "checkpoint_every", "keep",
    "channels_last", "compile", "checkpointing",
}  # fmt: skip


def seed_for(*keys: int | str) -> int:
    """A seed that depends on all of ``keys`` and nothing else.

    Every random draw of a run has its own generator, seeded by what it is for (run seed, epoch,
    position), so that a draw is the same however many workers there are and wherever a run was
    resumed: there is no stream whose position could be lost.

    >>> seed_for(0, "crop", 3) == seed_for(0, "crop", 3) != seed_for(0, "crop", 4)
    True
    """
    digest = blake2b(repr(keys).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1  # torch takes 63 bits everywhere


def generator_for(*keys: int | str) -> torch.Generator:
    """A CPU generator seeded by :func:`seed_for`."""
    return torch.Generator().manual_seed(seed_for(*keys))


def seed_everything(seed: int) -> None:
    """Seed the global generators, for what does not take a generator (weight init, dropout)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - third-party code draws from the global one
    torch.manual_seed(seed)


def choose_device(name: str) -> torch.device:
    """``auto`` is a GPU where there is one; of several processes each has its own.

    Raises :class:`~mcn.errors.MCNError` for a device that is not there.
    """
    name = own_device(name)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise MCNError(f"device {name!r} is not available here: {str(error).splitlines()[0]}") from error
    return device


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, commit and machine, for the record of a run."""
    return {
        "mcn": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "command": sys.argv,
    }


def _commit() -> str:
    try:
        here = Path(__file__).parent
        shown = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        return subprocess.run(shown, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


class RunFolder:
    """Opens a run folder, new or to be continued, and keeps its records.

    A folder that holds a run with other settings is refused, so that no run is ever mixed with
    another. ``resumed`` is the newest checkpoint's path, or ``None`` for a new run. Of several processes
    (``ranks``) the first alone touches the folder; to write is nothing on the others.
    """

    def __init__(self, config: RunConfig, command: str, ranks: Ranks = Ranks()) -> None:  # noqa: B008 - frozen
        self.ranks = ranks
        self.device = choose_device(config.device)
        if config.threads:
            torch.set_num_threads(config.threads)
        self._writer: SummaryWriter | None = None
        self.path, self.resumed = ranks.on_first(lambda: self._open(config, command))

    def _open(self, config: RunConfig, command: str) -> tuple[Path, Path | None]:
        """Make the folder, or take up the one that is there; gives it and its newest checkpoint."""
        self.path = Path(config.out) if config.out else _new_folder(command)
        with _writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            self._same_settings(config)
            for stale in self.path.glob(".*.partial"):  # left by a process that was killed
                stale.unlink()
        write_text(self.path / "config.yaml", to_yaml(config))
        self.write_json("environment.json", environment(self.device) | {"processes": self.ranks.size})
        return self.path, latest_checkpoint(self.checkpoints)

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints are."""
        return self.path / "checkpoints"

    @property
    def metrics_path(self) -> Path:
        """Where the metrics are, one JSON object a line."""
        return self.path / "metrics.jsonl"

    def _same_settings(self, config: RunConfig) -> None:
        path = self.path / "config.yaml"
        if not path.exists():
            return
        try:
            old = dict(yaml.safe_load(path.read_text()))
        except (ValueError, TypeError, yaml.YAMLError) as error:
            raise MCNError(f"{path} is damaged: restore it to continue, or choose another --out") from error
        new = yaml.safe_load(to_yaml(config))
        for name in {**new, **old}:
            before, now = old.get(name, "not set"), new.get(name, "not set")
            if before != now and name not in _MAY_CHANGE:
                raise MCNError(
                    f"{self.path} holds a run with other settings ({name} was {before}, is now {now}): "
                    "give the same settings to continue it, or another --out"
                )

    def write_json(self, name: str, content: Any) -> Path:
        """Write a JSON file of the run, whole or not at all."""
        if self.ranks.first:
            write_text(self.path / name, json.dumps(content, indent=2) + "\n")
        return self.path / name

    def rewind_metrics(self, step: int) -> None:
        """Drop metrics after ``step`` (later than the checkpoint that is resumed) and a torn last line."""
        if not self.ranks.first:
            return
        kept = []
        if self.metrics_path.exists():
            for line in self.metrics_path.read_text().splitlines():
                try:
                    if json.loads(line)["step"] <= step:
                        kept.append(line + "\n")
                except ValueError:
                    break  # the process was killed while it wrote this line
        write_text(self.metrics_path, "".join(kept))
        with _writing(self.path / "tensorboard"):
            self._writer = SummaryWriter(str(self.path / "tensorboard"), purge_step=step + 1)

    def log(self, step: int, **values: float | int | None) -> None:
        """Append one line of metrics and the same to TensorBoard."""
        if not self.ranks.first:
            return
        known = {name: value for name, value in values.items() if value is not None}
        with _writing(self.metrics_path), self.metrics_path.open("a") as file:
            file.write(json.dumps({"step": step, **known}) + "\n")
        if self._writer is not None:
            with _writing(self.path / "tensorboard"):
                for name, value in known.items():
                    self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush what is still in memory."""
        if self._writer is not None:
            with _writing(self.path / "tensorboard"):
                self._writer.close()


def _new_folder(command: str) -> Path:
    """``runs/<command>-<date>-<time>``, with a number behind for each further run of that second."""
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    for number in count(1):
        path = Path(f"runs/{command}-{stamp}" + (f"-{number}" if number > 1 else ""))
        with _writing(path), suppress(FileExistsError):
            path.mkdir(parents=True)
            break
    return path


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Say in one line what could not be written, and what to do."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise MCNError(f"cannot write {path}: {reason} (free some space or choose another --out)") from error


def read_metrics(path: str | Path) -> list[dict[str, float]]:
    """The lines of a run's ``metrics.jsonl`` as dicts."""
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def progress_bar(total: int, start: int, what: str, unit: str = "step", *, shown: bool = True) -> "tqdm[Any]":
    """A live bar with rate and time left, on standard error."""
    return tqdm(
        total=total, initial=start, desc=what, unit=unit, dynamic_ncols=True, mininterval=0.5,
        disable=not shown,
    )  # fmt: skip
