"""Drawing for the synthetic actions: one textured object over a panning, textured background.

A *scene* is everything that is not motion: shapes, textures, colours and the camera's pan. A
*pose track* says where the object is. The two are drawn from separate random streams and meet
only in `render`, which is what keeps appearance and action independent of each other.
"""

import colorsys
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]

SHAPES = ("disc", "egg", "triangle", "square", "star", "flower")
OBJECT_PATTERNS = ("plain", "stripes", "checker", "dots")
BACKGROUND_PATTERNS = ("noise", "gradient", "stripes", "checker")

# Fractions of the frame's side, and swings of a logarithm. The object's diameter is about a
# third of the frame; it travels half a frame from one extreme to the other.
RADIUS = 0.165
TRAVEL = 0.22
LOG_SCALE = 0.40
LOG_ASPECT = 0.42
# A quarter of the cameras stand still; the others pan by at most 0.4 of a frame in 40 frames.
STILL_CAMERAS = 0.25
PAN = (0.002, 0.010)

PERIOD = 12.0  # frames of one cycle at rate 1 and mean speed
SPEED = (0.75, 1.25)  # each video's own speed: a nuisance, the same for all classes


class Motion(NamedTuple):
    """How phases advance: cycles a period for (x, y, scale, aspect, angle), and two additions."""

    rates: tuple[float, float, float, float, float] = (0, 0, 0, 0, 0)
    walk: float = 0.0  # step of a random walk of x and y, in radians a frame
    rock: float = 0.0  # the angle swings to and fro by this many radians


MOTIONS = {
    "Sway": Motion((1, 0, 0, 0, 0)),
    "Bob": Motion((0, 1, 0, 0, 0)),
    "Spin": Motion((0, 0, 0, 0, 0.75)),
    "Pulse": Motion((0, 0, 1, 0, 0)),
    "Orbit": Motion((1, 1, 0, 0, 0)),
    "Squash": Motion((0, 0, 0, 1, 0)),
    "Shake": Motion(walk=1.0),
    "Still": Motion(),
    "SwaySpin": Motion((1, 0, 0, 0, 0.75)),
    "BobPulse": Motion((0, 1, 1, 0, 0)),
    "FigureEight": Motion((1, 2, 0, 0, 0)),
    "Rock": Motion(rock=0.8),
}


def draw_phases(rng: np.random.Generator, motion: Motion, frames: int) -> NDArray[np.float64]:
    """Draw a pose track: (frames, 5), in radians, not wrapped to one turn.

    Whatever the motion, each row on its own is uniform on the circle in all five columns, and
    they are independent: the advance is drawn independently of the uniform start.

    >>> phases = draw_phases(np.random.default_rng(0), MOTIONS["Sway"], 3)
    >>> (np.diff(phases, axis=0) != 0).any(axis=0)
    array([ True, False, False, False, False])
    """
    start, sense = rng.uniform(0, 2 * np.pi, 5), rng.choice([-1.0, 1.0], 5)
    speed = rng.uniform(*SPEED)
    beat = 2 * np.pi / PERIOD * speed * np.arange(frames)
    advance = beat[:, None] * np.asarray(motion.rates) * sense
    if motion.walk:
        advance[:, :2] += np.cumsum(rng.normal(0, motion.walk * speed, (frames, 2)), axis=0)
    if motion.rock:
        advance[:, 4] += motion.rock * np.sin(beat + rng.uniform(0, 2 * np.pi))
    return start + advance


@dataclass(frozen=True)
class Scene:
    """Appearance and camera of one scene.

    Colours are RGB in 0..1, one row each: (first, second, third). Waves are rows of
    (x frequency, y frequency, phase): cycles per frame side for the background, cycles per
    object radius for the object. The pan is in frame sides per frame, right and down.
    """

    shape: str
    object_pattern: str
    object_colours: Array
    object_waves: Array
    background_pattern: str
    background_colours: Array
    background_waves: Array
    pan: tuple[float, float]


def draw_scene(rng: np.random.Generator) -> Scene:
    """Draw one scene at random.

    >>> scene = draw_scene(np.random.default_rng(0))
    >>> scene.shape in SHAPES, scene.object_colours.shape
    (True, (3, 3))
    """
    # The object is bright on dark or dark on bright, so that it can be seen in every scene; its
    # third colour (the spot) takes the background's brightness.
    dark, bright = (0.12, 0.42), (0.62, 1.0)
    back, front = (dark, bright) if rng.random() < 0.5 else (bright, dark)
    background_pattern = str(rng.choice(BACKGROUND_PATTERNS))
    slow = background_pattern == "gradient"
    background_frequency = (0.3, 0.8) if slow else (1.5, 3.5)
    still = rng.random() < STILL_CAMERAS
    speed, heading = rng.uniform(*PAN), rng.uniform(0, 2 * np.pi)
    return Scene(
        shape=str(rng.choice(SHAPES)),
        object_pattern=str(rng.choice(OBJECT_PATTERNS)),
        object_colours=_colours(rng, (front, front, back)),
        object_waves=_waves(rng, (0.5, 0.9)),
        background_pattern=background_pattern,
        background_colours=_colours(rng, (back, back, back)),
        background_waves=_waves(rng, background_frequency),
        pan=(0.0, 0.0) if still else (speed * np.cos(heading), speed * np.sin(heading)),
    )


def render(scene: Scene, phases: NDArray[np.float64], size: int) -> NDArray[np.uint8]:
    """Render the scene with the object at the given poses.

    `phases` is (frames, 5), in radians: the phases of x, y, scale and aspect, and the angle. The
    result is uint8 (frames, size, size, 3), RGB. Frame t is a function of the scene, of t and of
    ``phases[t]`` alone.

    >>> render(draw_scene(np.random.default_rng(0)), np.zeros((4, 5)), 16).shape
    (4, 16, 16, 3)
    """
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    x, y = axis[None, None, :], axis[None, :, None]
    time = np.arange(len(phases), dtype=np.float32)[:, None, None]
    background = _blend(
        scene.background_colours[0],
        scene.background_colours[1],
        _pattern(
            scene.background_pattern,
            scene.background_waves,
            x - np.float32(scene.pan[0]) * time,
            y - np.float32(scene.pan[1]) * time,
        ),
    )
    # A fixed third colour creeps in from one side: lighting, which stays with the frame.
    _mix(background, scene.background_colours[2], 0.35 * x)
    u, v, radius = _object_frame(phases, x, y)
    body = _blend(
        scene.object_colours[0],
        scene.object_colours[1],
        _pattern(scene.object_pattern, scene.object_waves, u, v),
    )
    # The spot sits off the centre on every object, so that no object looks the same after a
    # part of a turn: without it a plain disc would hide its spin.
    pixels = radius * size
    _mix(body, scene.object_colours[2], _inside(np.hypot(u - 0.48, v), np.float32(0.3), pixels))
    outline = _outline(scene.shape, np.arctan2(v, u))
    _mix(background, body, _inside(np.hypot(u, v), outline, pixels))
    return np.round(background * 255).astype(np.uint8)


def _object_frame(phases: NDArray[np.float64], x: Array, y: Array) -> tuple[Array, Array, Array]:
    """Pixel coordinates in the object's own frame (units of its radius), and that radius."""
    columns = phases.astype(np.float32).T[:, :, None, None]
    sin_x, sin_y, sin_scale, sin_aspect = np.sin(columns[:4])
    angle = columns[4]
    radius = RADIUS * np.exp(LOG_SCALE * sin_scale)
    stretch = np.exp(LOG_ASPECT * sin_aspect)
    dx = x - (0.5 + TRAVEL * sin_x)
    dy = y - (0.5 + TRAVEL * sin_y)
    along = (np.cos(angle) * dx + np.sin(angle) * dy) / (radius * stretch)
    across = (np.cos(angle) * dy - np.sin(angle) * dx) / (radius / stretch)
    return along, across, radius


def _outline(shape: str, angle: Array) -> Array:
    """The outline's distance from the centre, in radii, in each direction; areas are alike."""
    if shape == "egg":
        return 0.95 + 0.3 * np.cos(angle)
    if shape == "star":
        return 0.95 + 0.28 * np.cos(5 * angle)
    if shape == "flower":
        return 0.95 + 0.25 * np.cos(3 * angle)
    if shape == "disc":
        return np.ones_like(angle)
    corners = {"triangle": 3, "square": 4}[shape]
    half = np.pi / corners
    reach = np.sqrt(np.pi / (corners * np.tan(half)))
    return (reach / np.cos(np.mod(angle, 2 * half) - half)).astype(np.float32)


def _inside(distance: Array, edge: Array | np.float32, pixels: Array) -> Array:
    """Coverage 0..1 of each pixel, with an edge about one pixel wide against aliasing."""
    return np.clip((edge - distance) * pixels + 0.5, 0, 1)


def _pattern(kind: str, waves: Array, x: Array, y: Array) -> Array:
    """A texture with values 0..1; its edges are soft, so that it needs no supersampling."""
    if kind == "plain":
        return np.zeros(np.broadcast_shapes(x.shape, y.shape), np.float32)
    used = {"stripes": 1, "checker": 2, "dots": 2}.get(kind, len(waves))
    sines = [np.sin(2 * np.pi * (kx * x + ky * y) + phase) for kx, ky, phase in waves[:used]]
    if kind == "stripes":
        field = np.tanh(3 * sines[0])
    elif kind == "checker":
        field = np.tanh(4 * sines[0] * sines[1])
    elif kind == "dots":
        field = np.tanh(6 * (np.abs(sines[0] * sines[1]) - 0.4))
    else:
        field = np.tanh(0.8 * sum(sines[1:], start=sines[0]))
    return 0.5 + 0.5 * field


def _waves(rng: np.random.Generator, frequency: tuple[float, float], count: int = 4) -> Array:
    """Random waves; the first two are at right angles, so that checkers and dots come out even."""
    lengths = rng.uniform(*frequency, count)
    headings = rng.uniform(0, 2 * np.pi, count)
    headings[1], lengths[1] = headings[0] + np.pi / 2, lengths[0]
    phases = rng.uniform(0, 2 * np.pi, count)
    waves = (lengths * np.cos(headings), lengths * np.sin(headings), phases)
    return np.stack(waves, axis=1).astype(np.float32)


def _colours(rng: np.random.Generator, values: tuple[tuple[float, float], ...]) -> Array:
    """One random colour for each range of brightness (the V of HSV), as rows of RGB."""
    rows = [
        colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.25, 0.9), rng.uniform(low, high))
        for low, high in values
    ]
    return np.asarray(rows, dtype=np.float32)


def _blend(first: Array, second: Array, weight: Array) -> Array:
    return (first + weight[..., None] * (second - first)).astype(np.float32)


def _mix(image: Array, colour: Array, weight: Array) -> None:
    """Blend `colour` into `image` in place, to save half of the memory traffic."""
    image += weight[..., None] * (colour - image)
