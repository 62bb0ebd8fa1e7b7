"""Self-supervised video representation learning with a meta-contrastive network (MCN)."""

from mcn._version import __version__

__all__ = ["__version__"]
