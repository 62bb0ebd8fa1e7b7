"""The verbs of the scripts in ``data_scripts/``: get, extract, check, prepare, flow, for any data set.

A script says what is special to its data set in a :class:`DataSource` and leaves the rest to :func:`main`.
Each verb can be stopped and started again, and ends with the same files.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from mcn.data.datasets import load_videos
from mcn.errors import MCNError
from mcn.files import write_atomically
from mcn.preparation.archives import extract
from mcn.preparation.check import check
from mcn.preparation.download import RemoteFile, fetch_all
from mcn.preparation.flow import Method, write_flow_of
from mcn.preparation.prepare import PrepareConfig, prepare

#: Where ``get`` puts archives, in the data set's folder.
ARCHIVES = "archives"


@dataclass(frozen=True)
class DataSource:
    """What is special to a data set.

    ``remotes`` gives the files that ``get`` fetches, below ``ROOT/archives``; it is called with that folder,
    the parts asked for, and the certificates to trust (``--ca-bundle``). ``parts`` are those there are
    (empty: one whole). ``folder_of`` says into which folder below ROOT an archive or list of a name goes.
    ``terms`` is printed by ``get``: the licence, and where to look. ``make``, where there is one, writes
    the data set instead of fetching it: it takes ROOT and ``settings``, a dataclass.
    """

    script: str
    title: str
    terms: str = ""
    remotes: Callable[[Path, Sequence[str], str], Sequence[RemoteFile]] | None = None
    parts: tuple[str, ...] = ()
    folder_of: Callable[[str], str] = lambda name: ""
    make: Callable[..., object] | None = None
    settings: type | None = None


def main(source: DataSource, arguments: Sequence[str] | None = None) -> int:
    """Run one verb; gives the exit status: 0, 1 for what the user can mend, 2 for a bad flag."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage(source))
        return 0 if arguments else 2
    verb, rest = arguments[0], arguments[1:]
    if verb not in _VERBS:
        print(f"{source.script}: unknown verb {verb!r}: one of {', '.join(_VERBS)}", file=sys.stderr)
        return 2
    run, add, _ = _VERBS[verb]
    parser = ArgumentParser(
        prog=f"{source.script} {verb}", description=_help(source, verb), exit_on_error=False
    )
    parser.add_argument("root", type=str, help="the data set's folder")
    add(parser, source)
    try:
        chosen = parser.parse_args(rest)
    except Exception as error:  # jsonargparse raises several types for one thing: a bad flag
        said = " ".join(str(error).split())
        print(f"{source.script} {verb}: {said} (see {source.script} {verb} --help)", file=sys.stderr)
        return 2
    try:
        return run(source, Path(chosen.root), chosen)
    except MCNError as error:
        print(f"{source.script} {verb}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{source.script} {verb}: interrupted; the same command goes on from here", file=sys.stderr)
        return 130


def _get(source: DataSource, root: Path, chosen: Any) -> int:
    if source.make and source.settings:
        settings = {field.name: chosen[field.name] for field in fields(source.settings)}
        source.make(root, source.settings(**settings), chosen.workers, progress=True)
        print(f"{root}: {len(load_videos(root, 'all')):,} videos")
        return 0
    if source.remotes is None:
        print(f"{source.title}: there is nothing to fetch; put the videos into {root} (next: check)")
        return 0
    print(source.terms)
    parts = [part.strip() for part in chosen.parts.split(",")] if source.parts else []
    if unknown := sorted(set(parts) - set(source.parts)):
        raise MCNError(f"--parts {chosen.parts}: there is no {unknown[0]!r}, only {', '.join(source.parts)}")
    remotes = source.remotes(root / ARCHIVES, parts, chosen.ca_bundle)
    given = chosen["from"] or None
    paths = fetch_all(remotes, root / ARCHIVES, source=given, ca_bundle=chosen.ca_bundle)
    size = sum(path.stat().st_size for path in paths) / 1e6
    print(f"{root / ARCHIVES}: {len(paths)} files, {size:,.1f} MB (next: {source.script} extract {root})")
    return 0


def _extract(source: DataSource, root: Path, chosen: Any) -> int:
    if source.make:
        print(f"{source.title}: there is nothing to unpack (next: {source.script} check {root})")
        return 0
    folder = Path(chosen.archives) if chosen.archives else root / ARCHIVES
    archives = sorted(path for path in folder.rglob("*") if path.name.lower().endswith(_ARCHIVES))
    if not archives:
        raise MCNError(f"no archives in {folder} ({', '.join(_ARCHIVES)}): run get first, or give --archives")
    for archive in archives:
        extract(archive, root / source.folder_of(archive.relative_to(folder).as_posix()))
    for path in sorted(folder.rglob("*.csv")):  # lists that come as they are
        place = root / source.folder_of(path.relative_to(folder).as_posix()) / path.name
        write_atomically(place, lambda file, path=path: file.write(path.read_bytes()))  # type: ignore[misc]
    print(f"{root}: {len(archives)} archives unpacked (next: {source.script} check {root})")
    return 0


def _check(source: DataSource, root: Path, chosen: Any) -> int:
    report = check(root, quick=chosen.quick, workers=chosen.workers, dask=chosen.dask)
    print(report)
    if chosen.json:
        report.save(Path(chosen.json))
    return 0 if report.ok else 1


def _prepare(source: DataSource, root: Path, chosen: Any) -> int:
    settings = {field.name: chosen[field.name] for field in fields(PrepareConfig)}
    for line in prepare(root, Path(chosen.out), PrepareConfig(**settings)).report:
        print(line)
    print(f"next: mcn pretrain --data {chosen.out} ...")
    return 0


def _flow(source: DataSource, root: Path, chosen: Any) -> int:
    videos = load_videos(root, "all")
    written = write_flow_of(
        videos, method=chosen.method, device=chosen.device, workers=chosen.workers, dask=chosen.dask
    )
    for line in written.damaged:
        print(f"damaged, its readable part has flow: {line}")
    for line in written.unreadable:
        print(f"unreadable, without flow: {line}")
    print(f"flow of {written.pairs:,} frame pairs (next: mcn pretrain --data {root} --view2 flow_v ...)")
    return 0 if not written.unreadable else 1


def _add_get(parser: ArgumentParser, source: DataSource) -> None:
    if source.settings:
        parser.add_class_arguments(source.settings)
        parser.add_argument("--workers", type=int | None, default=None, help="processes (default: cores)")
    elif source.remotes:
        if source.parts:
            told = f"which, with commas between; of {', '.join(source.parts)}"
            parser.add_argument("--parts", type=str, default=",".join(source.parts), help=told)
        parser.add_argument("--from", type=str, default="", help="folder of archives that are here already")
        parser.add_argument(
            "--ca-bundle",
            type=str,
            default="",
            help="PEM file of certificates to trust, root and intermediate",
        )


def _add_extract(parser: ArgumentParser, source: DataSource) -> None:
    parser.add_argument("--archives", type=str, default="", help="where they are (default: ROOT/archives)")


def _add_work(parser: ArgumentParser, source: DataSource) -> None:
    parser.add_argument("--workers", type=int | None, default=None, help="at a time (default: cores)")
    parser.add_argument("--dask", type=str, default="", help="address of a dask.distributed scheduler to use")


def _add_check(parser: ArgumentParser, source: DataSource) -> None:
    parser.add_argument("--quick", action="store_true", help="do not decode the videos")
    parser.add_argument("--json", type=str, default="", help="file to write the whole report to")
    _add_work(parser, source)


def _add_prepare(parser: ArgumentParser, source: DataSource) -> None:
    parser.add_argument("out", type=str, help="folder to write")
    parser.add_class_arguments(PrepareConfig)


def _add_flow(parser: ArgumentParser, source: DataSource) -> None:
    parser.add_argument("--method", type=Method, default="opencv", help="torch: for a GPU")
    parser.add_argument("--device", type=str, default="cpu", help="of the method torch: cpu, cuda, ...")
    _add_work(parser, source)


_ARCHIVES = (".rar", ".zip", ".tar", ".tar.gz", ".tgz")
_Run = Callable[[DataSource, Path, Any], int]
_Add = Callable[[ArgumentParser, DataSource], None]
_VERBS: dict[str, tuple[_Run, _Add, str]] = {
    "get": (_get, _add_get, "fetch the archives, or take them from a folder (--from)"),
    "extract": (_extract, _add_extract, "unpack the archives"),
    "check": (_check, _add_check, "counts; what is missing, doubled, damaged or unreadable, by name"),
    "prepare": (_prepare, _add_prepare, "write a small copy that is quick to read"),
    "flow": (_flow, _add_flow, "store the TV-L1 optical flow beside the videos"),
}


def _help(source: DataSource, verb: str) -> str:
    told = "write the data set" if verb == "get" and source.make else _VERBS[verb][2]
    return f"{source.title}: {told}."


def _usage(source: DataSource) -> str:
    lines = [f"  {verb:8} {_help(source, verb).split(': ', 1)[1]}" for verb in _VERBS]
    return f"usage: {source.script} VERB ROOT [--help] ...\n\n{source.title}\n" + "\n".join(lines)
