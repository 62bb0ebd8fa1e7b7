"""Networks as settings describe them: untrained, of a checkpoint, or with the weights of another's file."""

import dataclasses

import torch

from mcn._weights import require
from mcn.config import EvalConfig, FinetuneConfig, PretrainConfig, build
from mcn.errors import MCNError
from mcn.network import MetaContrastiveNetwork
from mcn.precision import prepare
from mcn.run import choose_device, seed_everything, seed_for
from mcn.starting_points import StartingPoint, read_starting_point


def network_from_config(config: PretrainConfig) -> MetaContrastiveNetwork:
    """The network that a pre-training config describes, randomly initialised from its seed.

    Raises :class:`~mcn.errors.MCNError` for a width that the backbone cannot have.
    """
    seed_everything(seed_for(config.seed, "weights"))
    try:
        return MetaContrastiveNetwork(
            config.backbone,
            width=config.width,
            dim=config.dim,
            projection=config.projection,
            head=config.head,
            fcm_input=config.fcm_input,
            fcm_group=config.fcm_group,
            fcm_pairing=config.fcm_pairing,
            sharing=config.sharing,
            statistics=config.statistics,
        )
    except ValueError as error:
        raise MCNError(f"--backbone {config.backbone} --width {config.width}: {error}") from error


def load_network(
    config: EvalConfig | FinetuneConfig, device: torch.device, start: StartingPoint | None = None
) -> tuple[MetaContrastiveNetwork, PretrainConfig]:
    """The network of a checkpoint, or one of the config's backbone, on ``device``.

    The latter is untrained, or has the weights of another program's file (:mod:`mcn.starting_points`).
    ``start`` is what the checkpoint was read as, where that has been done. Also gives the pre-training config
    that describes the network. Raises :class:`~mcn.errors.MCNError` for a checkpoint that is missing,
    unreadable or fine-tuned, for one of ours that never saw the view asked for, and for another backbone.
    """
    plain = PretrainConfig(backbone=config.backbone, width=config.width, seed=config.seed)
    if not config.checkpoint:
        return network_from_config(plain).to(device), plain
    start = start or read_starting_point(config.checkpoint, config.backbone)
    if not start.ours:
        network = network_from_config(plain)
        print(start.load_into(network, plain))
        return network.to(device), dataclasses.replace(plain, init_from=config.checkpoint)
    state = start.ours
    if "bank" not in state:
        raise MCNError(
            f"{config.checkpoint} is not a pre-training checkpoint: give one that `mcn pretrain` wrote"
        )
    require(state, ("config",), config.checkpoint)
    trained = build(PretrainConfig, state["config"])
    if config.view != "rgb" and config.view != trained.view2:
        raise MCNError(f"{config.checkpoint} was trained on rgb and {trained.view2}: use --view rgb")
    network = network_from_config(trained)
    start.load_into(network, trained)
    return network.to(device), trained


def load_networks(config: EvalConfig) -> list[MetaContrastiveNetwork]:
    """The network of each of a config's views, on its device, with the memory order and compiler asked for.

    A checkpoint of both views is read once. Raises :class:`~mcn.errors.MCNError` as :func:`load_network`
    does.
    """
    device, views = choose_device(config.device), single_views(config)
    places = dict.fromkeys(one.checkpoint for one in views if one.checkpoint)
    starts = {where: read_starting_point(where, config.backbone) for where in places}
    return [prepare(load_network(one, device, starts.get(one.checkpoint))[0], one) for one in views]


def single_views(config: EvalConfig) -> list[EvalConfig]:
    """A config of joined views as one config a view, the second with its own checkpoint if it has one.

    >>> [one.view for one in single_views(EvalConfig(view="rgb+flow_v"))]
    ['rgb', 'flow_v']
    """
    views = config.view.split("+")
    if len(views) == 1 and config.second_checkpoint:
        raise MCNError(
            f"--second_checkpoint is for two joined views, such as rgb+flow_v: --view is {config.view}"
        )
    checkpoints = (config.checkpoint, config.second_checkpoint or config.checkpoint)
    changes = (
        {"view": view, "checkpoint": checkpoint, "second_checkpoint": ""}
        for view, checkpoint in zip(views, checkpoints, strict=False)
    )
    return [dataclasses.replace(config, **change) for change in changes]  # type: ignore[arg-type]
