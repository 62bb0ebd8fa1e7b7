"""Write the synthetic actions: short videos, in UCF101's layout, whose class is the motion alone.

For example ``python data_scripts/synthetic.py data/synthetic --classes 8 --size 48``. Running it
again continues an interrupted run and leaves a complete set alone.
"""

import sys

from jsonargparse import ArgumentParser

from mcn.errors import MCNError
from mcn.preparation.synthetic import SyntheticConfig, write_synthetic_actions


def main(args: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = ArgumentParser(prog="synthetic.py", description=__doc__)
    parser.add_argument("root", help="the folder to write")
    parser.add_class_arguments(SyntheticConfig)
    parser.add_argument("--workers", type=int | None, default=None, help="processes (default: cores)")
    chosen = parser.parse_args(args).as_dict()
    root, workers = chosen.pop("root"), chosen.pop("workers")
    try:
        config = SyntheticConfig(**chosen)
        write_synthetic_actions(root, config, workers, progress=True)
    except MCNError as error:
        print(error, file=sys.stderr)
        return 1
    count = config.classes * config.groups * config.clips_per_group
    print(f"{count} videos of {config.classes} classes in {root}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
