"""Store the TV-L1 flow of every video of a data set, for ``mcn pretrain --view2 flow_v``.

For example ``python data_scripts/flow.py data/synthetic``. It writes ``data/synthetic/flow/`` and can
be stopped and started again. ``--method torch --device cuda`` computes it on a GPU.
"""

import sys

from jsonargparse import ArgumentParser

from mcn.data.datasets import load_videos
from mcn.errors import MCNError
from mcn.preparation.flow import Method, write_flow_of


def main(args: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = ArgumentParser(prog="flow.py", description=__doc__)
    parser.add_argument("root", help="the data set's folder")
    parser.add_argument("--method", type=Method, default="opencv", help="opencv (on cores) or torch")
    parser.add_argument("--device", default="cpu", help="where torch computes: cpu, cuda, cuda:1")
    parser.add_argument("--workers", type=int | None, default=None, help="videos at a time (default: cores)")
    parser.add_argument("--dask", default="", help="address of a dask scheduler whose workers do it")
    chosen = parser.parse_args(args)
    try:
        done = write_flow_of(
            load_videos(chosen.root, "all"),
            method=chosen.method,
            device=chosen.device,
            workers=chosen.workers,
            dask=chosen.dask,
        )
    except MCNError as error:
        print(f"flow.py: {error}", file=sys.stderr)
        return 1
    for line in done.damaged:
        print(f"flow.py: damaged, its readable part has flow: {line}", file=sys.stderr)
    for line in done.unreadable:
        print(f"flow.py: {line}", file=sys.stderr)
    print(f"flow of {done.pairs:,} frame pairs")
    return 1 if done.unreadable else 0


if __name__ == "__main__":
    sys.exit(main())
