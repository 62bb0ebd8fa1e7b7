"""Preparing a data set: every video once, small and quick to read, in a folder that works like its source.

``OUT/`` gets ``videos/`` (H.264 files, named as in the source) or ``packed/`` (shards of raw frames),
``manifest.jsonl``, copies of the source's lists and, last, ``prepared.json``: where that is, the set is
complete. A run that was interrupted goes on where it stood; one on a complete set checks every file and
mends what has changed. What comes out depends on the source, the settings and the versions of the
libraries alone, not on the number of workers or of interruptions.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av

from mcn._version import __version__
from mcn.data.datasets import Videos, load_videos
from mcn.data.layouts import recognise
from mcn.data.manifest import MANIFEST, SETTINGS, Entry, read_manifest
from mcn.data.packed import frame_bytes
from mcn.data.prepared import GOP
from mcn.data.supervise import supervised
from mcn.data.videoinfo import VideoError
from mcn.errors import MCNError
from mcn.files import write_atomically
from mcn.preparation import transcode
from mcn.preparation._jobs import plan, run_job
from mcn.preparation._space import need_space, size_text
from mcn.preparation.parallel import parallel_map
from mcn.preparation.transcode import Target

_FORMAT = 1  # raised whenever the same settings would give other files
_BEGUN = "prepared.partial.json"
_LOOKS = 16  # videos whose headers are read to guess how much space is needed
_BYTES_A_PIXEL = 0.12  # of H.264 at quantiser 20; half as many for every 6 more [measured, Kinetics-400]


@dataclass(frozen=True)
class PrepareConfig:
    """How a data set is prepared.

    Raises :class:`~mcn.errors.MCNError` for settings out of range.
    """

    short_side: int = 128
    """Pixels of the frames' short side; never more than the source's, and both sides become even."""
    form: str = "video"
    """video (H.264, less than the source's bytes) or packed (raw frames, 1.5 bytes a pixel: quickest to
    read, some 80 GB for UCF101)."""
    qp: int = 20
    """Quantiser of the H.264 form, 1 (best) to 40."""
    workers: int | None = None
    """How many videos at a time (default: one a usable core)."""
    dask: str = ""
    """Address of a dask.distributed scheduler whose workers do it instead."""

    def __post_init__(self) -> None:
        if not 16 <= self.short_side <= 4096:
            raise MCNError(f"short_side={self.short_side}: give 16 to 4096 pixels")
        if self.form not in ("video", "packed"):
            raise MCNError(f"form={self.form!r}: one of video, packed")
        if not 1 <= self.qp <= 40:
            raise MCNError(f"qp={self.qp}: give 1 (best) to 40")

    @property
    def settings(self) -> dict[str, Any]:
        """What the files depend on."""
        qp, gop = (self.qp, GOP) if self.form == "video" else (None, None)
        return {"format": _FORMAT, "form": self.form, "short_side": self.short_side, "qp": qp, "gop": gop}


@dataclass(frozen=True)
class PreparedSet:
    """What :func:`prepare` made: a folder, and its manifest's entries sorted by name."""

    folder: Path
    entries: tuple[Entry, ...]

    @property
    def damaged(self) -> list[Entry]:
        """Videos of which only a part could be read."""
        return [entry for entry in self.entries if entry.damage and entry.file]

    @property
    def unreadable(self) -> list[Entry]:
        """Videos that have no file because nothing of them could be read."""
        return [entry for entry in self.entries if not entry.file]

    @property
    def totals(self) -> dict[str, int]:
        """Numbers of videos, frames and bytes, and of damaged and unreadable videos."""
        return {
            "videos": len(self.entries) - len(self.unreadable),
            "frames": sum(entry.frames for entry in self.entries),
            "bytes": sum(entry.size for entry in self.entries),
            "damaged": len(self.damaged),
            "unreadable": len(self.unreadable),
        }

    @property
    def report(self) -> list[str]:
        """A line of totals, then one for each damaged or unreadable video."""
        t = self.totals
        first = f"{self.folder}: {t['videos']:,} videos, {t['frames']:,} frames, {size_text(t['bytes'])}"
        damaged = [f"damaged, {e.frames} frames are kept: {e.name}: {e.damage}" for e in self.damaged]
        return [first, *damaged, *(f"unreadable: {e.name}: {e.damage}" for e in self.unreadable)]


def prepare(
    source: Videos | str | Path, out: str | Path, config: PrepareConfig | None = None, progress: bool = True
) -> PreparedSet:
    """Prepare all videos of ``source`` (a data set's folder, or what was loaded) in the folder ``out``.

    Damaged videos are prepared as far as they can be read; unreadable ones are noted, without a
    file. ``progress`` shows a bar with the time left. Raises :class:`~mcn.errors.MCNError` for a folder
    that holds something else or a set with other settings, and where there is too little space.
    """
    videos = source if isinstance(source, Videos) else load_videos(source, "all")
    out, config = Path(out).absolute(), config or PrepareConfig()
    known = _known(videos, out, config)
    if (missing := len(videos) - len(known)) > 0:
        needed = estimate_bytes(videos, config) * missing // len(videos)
        need_space(out, needed, f"{missing:,} prepared videos")
    sources = {name: str(videos.path(index).absolute()) for index, name in enumerate(videos.names)}
    jobs = plan(sources, out, config.form == "packed", Target(config.short_side, config.qp), known)
    if not (out / SETTINGS).exists():
        _begin(out, config, known)
    desc, unit = "prepare" if progress else "", "video" if config.form == "video" else "shard"
    done = parallel_map(run_job, jobs, workers=config.workers, dask=config.dask, desc=desc, unit=unit)
    for _, entries in done:
        if news := [entry for entry in entries if known.get(entry.name) != entry]:
            if (out / SETTINGS).exists():
                _begin(out, config, known)
            known.update((entry.name, entry) for entry in news)
            with (out / MANIFEST).open("a", encoding="utf-8") as journal:
                journal.write("".join(entry.line for entry in news))
    return _finish(videos, config, PreparedSet(out, tuple(known[name] for name in sorted(known))))


def estimate_bytes(videos: Videos, config: PrepareConfig) -> int:
    """About how many bytes a prepared data set takes, from the headers of a few of its videos."""
    sizes = [videos.path(i).stat().st_size if videos.path(i).exists() else 0 for i in range(len(videos))]
    prepared = source = 0.0
    for index in range(0, len(videos), -(-len(videos) // _LOOKS)):
        try:
            head = supervised(transcode.outline, str(videos.path(index)))
        except VideoError:
            continue  # a guess goes without it; that it is unreadable is noted when its turn comes
        height, width = transcode.small_size(head.height, head.width, config.short_side)
        coded = height * width * _BYTES_A_PIXEL * 2 ** ((20 - config.qp) / 6)
        prepared += head.num_frames * (coded if config.form == "video" else frame_bytes(height, width) + 4)
        source += sizes[index]
    return round(prepared * sum(sizes) / source) if source else 0


def _known(videos: Videos, out: Path, config: PrepareConfig) -> dict[str, Entry]:
    """What the folder holds already, by name; raises where it is not for us to write to."""
    here, there = out.resolve(), videos.folder.resolve()
    if here in (there, *there.parents) or there in here.parents:
        raise MCNError(f"{out}: choose a folder that is neither in nor around the videos' {videos.folder}")
    begun = [path for path in (out / SETTINGS, out / _BEGUN) if path.exists()]
    for path in begun:
        _same_settings(path, config.settings)
    if not begun and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise MCNError(f"{out}: something else is there (choose an empty or a new folder)")
    known = read_manifest(out) if begun and (out / MANIFEST).exists() else {}
    if strangers := sorted(set(known) - set(videos.names)):
        raise MCNError(
            f"{out} holds {len(strangers):,} videos that are not in {videos.folder} (first: {strangers[0]}): "
            "choose another folder"
        )
    return known


def _same_settings(path: Path, settings: dict[str, Any]) -> None:
    """Raise unless the file tells of these settings."""
    try:
        found = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise MCNError(f"{path} is damaged ({error}): remove the folder and prepare again") from None
    changed = [key for key, value in settings.items() if found.get(key) != value]
    if changed:
        what = ", ".join(f"{key} is {found.get(key)}, not {settings[key]}" for key in changed)
        raise MCNError(f"{path.parent} was prepared with other settings ({what}): choose another folder")


def _begin(out: Path, config: PrepareConfig, known: dict[str, Entry]) -> None:
    """Mark the folder as begun; its manifest becomes the journal, without a line that was torn."""
    _write(out / _BEGUN, json.dumps(config.settings, indent=2) + "\n")
    (out / SETTINGS).unlink(missing_ok=True)
    _write(out / MANIFEST, "".join(entry.line for entry in known.values()))


def _finish(videos: Videos, config: PrepareConfig, made: PreparedSet) -> PreparedSet:
    """Lists, the sorted manifest and, last, the settings."""
    out = made.folder
    source = recognise(videos.root)
    for path in source.lists:
        _write(out / path.relative_to(source.root), path.read_bytes())
    if (out / SETTINGS).exists():
        return made
    for left in out.rglob(".*.partial"):  # of workers that were killed
        left.unlink()
    _write(out / MANIFEST, "".join(entry.line for entry in made.entries))
    versions = {"mcn": __version__, "av": av.__version__}
    for library in ("libavcodec", "libavformat", "libswscale"):
        versions[library] = ".".join(map(str, av.library_versions[library]))
    content = {**config.settings, **made.totals, "versions": versions}
    _write(out / SETTINGS, json.dumps(content, indent=2) + "\n")
    (out / _BEGUN).unlink()
    return made


def _write(path: Path, content: str | bytes) -> None:
    data = content.encode() if isinstance(content, str) else content
    if path.is_file() and path.read_bytes() == data:
        return
    write_atomically(path, lambda file: file.write(data))
