"""Solids as meshes, and clouds of points on their surfaces: ten that a task has classes of, and six strange ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
# Vertices of shape (V, 3) and triangles of shape (F, 3) as indices of them.
Mesh = tuple[Array, NDArray[np.int64]]

_ROUND = 20


def on_surface(mesh: Mesh, count: int, chance: np.random.Generator) -> Array:
    """Points drawn uniformly by area from a mesh, of shape (count, 3).

    Raises:
        ValueError: a surface without area.
    """
    vertices, faces = mesh
    a, b, c = (vertices[faces[:, corner]] for corner in range(3))
    areas = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    reached = np.cumsum(areas)
    if not (len(reached) and np.isfinite(reached[-1]) and reached[-1] > 0):
        raise ValueError("expected a surface with an area, got none")
    u, v, where = chance.random((3, count))
    chosen = np.minimum(np.searchsorted(reached, where * reached[-1], side="right"), len(areas) - 1)
    # A point of the parallelogram's other half is mirrored into the triangle.
    over = u + v > 1
    u, v = np.where(over, 1 - u, u), np.where(over, 1 - v, v)
    made: Array = a[chosen] + u[:, None] * (b - a)[chosen] + v[:, None] * (c - a)[chosen]
    return made


def in_unit_ball(points: Array) -> Array:
    """The points moved so that their mean is 0, and scaled so that the farthest is at distance 1."""
    centred = points - points.mean(axis=0)
    farthest = float(np.sqrt((centred**2).sum(axis=1).max()))
    # Of points that are all the same only rounding is left, which is no extent.
    scaled: Array = centred / farthest if farthest > 1e-12 * np.abs(points).max(initial=0) else 0 * centred
    return scaled


def cloud(solid: str, count: int, chance: np.random.Generator) -> Array:
    """A solid in random shape, pose, size and density, as noisy points of its surface.

    Proportions vary by up to `e ** STRETCH` each way along each axis, the direction is uniform over all rotations; on
    one side points lie up to `e ** (2 * SLOPE)` times as close as on the other; at least three quarters of the points
    are distinct, the others repeat some of these.

    Args:
        solid: one of `COMMON` or `STRANGE`.
        count: number of points.
        chance: draws everything.

    Returns:
        Shape (count, 3), in the unit ball, the farthest point at a distance between 0.7 and 1.
    """
    vertices, faces = _SOLIDS[solid](chance)
    vertices = in_unit_ball(vertices) * np.exp(chance.uniform(-STRETCH, STRETCH, 3))
    dense = in_unit_ball(on_surface((vertices, faces), 3 * count, chance))
    slope = chance.uniform(0, SLOPE) * _direction(chance)
    # The largest of weight plus Gumbel noise are a draw by weight without replacement.
    ranked = np.argsort(-(dense @ slope + chance.gumbel(size=len(dense))), kind="stable")
    distinct = chance.integers(3 * count // 4, count + 1)
    kept = np.concatenate([np.arange(distinct), chance.integers(0, distinct, count - distinct)])
    points = dense[ranked[kept]] + chance.uniform(0, NOISE) * chance.standard_normal((count, 3))[kept]
    turned: Array = in_unit_ball(points) @ rotation(chance).T * chance.uniform(0.7, 1.0)
    return turned


# How far `cloud` goes: logarithm of the largest stretch, of the density's half range, and the noise's largest scale.
STRETCH, SLOPE, NOISE = 0.45, 0.6, 0.02


def rotation(chance: np.random.Generator) -> Array:
    """A rotation in space, uniform over all of them, of shape (3, 3); from a uniform unit quaternion."""
    w, x, y, z = _direction(chance, 4)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def _direction(chance: np.random.Generator, dimensions: int = 3) -> Array:
    drawn = chance.standard_normal(dimensions)
    unit: Array = drawn / np.sqrt((drawn**2).sum())
    return unit


# Surfaces from grids of points


def _grid(points: Array, around: bool = False) -> Mesh:
    """A grid of points of shape (U, V, 3) as triangles; its last column joined to the first where it goes around."""
    rows, columns, _ = points.shape
    number = np.arange(rows * columns).reshape(rows, columns)
    if around:
        number = np.concatenate([number, number[:, :1]], axis=1)
    a, b, c, d = number[:-1, :-1], number[:-1, 1:], number[1:, :-1], number[1:, 1:]
    faces = np.concatenate([np.stack([a, b, c], -1).reshape(-1, 3), np.stack([b, d, c], -1).reshape(-1, 3)])
    return points.reshape(-1, 3), faces


def _turned(profile: Array, sides: int = _ROUND) -> Mesh:
    """A profile of points (distance, height), of shape (P, 2), turned about the axis in so many steps."""
    angle = 2 * np.pi * np.arange(sides) / sides
    ring = np.stack([np.cos(angle), np.sin(angle)], -1)
    flat = profile[:, None, :1] * ring
    height = np.broadcast_to(profile[:, None, 1:], (len(profile), sides, 1))
    return _grid(np.concatenate([flat, height], -1), around=True)


def _swept(curve: Array, radius: float) -> Mesh:
    """A tube around a curve of shape (P, 3)."""
    along = np.gradient(curve, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    aside = np.cross(along, np.array([0.03, 0.05, 1.0]))
    aside /= np.linalg.norm(aside, axis=1, keepdims=True)
    angle = 2 * np.pi * np.arange(10) / 10
    offsets = np.cos(angle)[:, None] * aside[:, None] + np.sin(angle)[:, None] * np.cross(along, aside)[:, None]
    return _grid(curve[:, None] + radius * offsets, around=True)


def _extruded(outline: Array, height: float) -> Mesh:
    """An outline of shape (P, 2), of which every point can be seen from the origin, with a floor, walls and a lid."""
    levels = [(0.0, -height), (1.0, -height), (1.0, height), (0.0, height)]
    rows = [np.column_stack([scale * outline, np.full(len(outline), z)]) for scale, z in levels]
    return _grid(np.stack(rows), around=True)


def _arc(start: float, end: float, points: int = 10, radius: float = 1.0, height: float = 0.0) -> Array:
    """Points (distance, height) of a circle about (0, height), angles from the horizontal."""
    angle = np.linspace(start, end, points)
    return np.column_stack([radius * np.cos(angle), height + radius * np.sin(angle)])


# The solids, each in proportions of its own

_QUARTER = np.pi / 2


def _ball(chance: np.random.Generator) -> Mesh:
    return _turned(_arc(-_QUARTER, _QUARTER) * np.array([1, chance.uniform(0.8, 1.25)]))


def _box(chance: np.random.Generator) -> Mesh:
    height = chance.uniform(0.5, 0.9)
    return _turned(np.array([[0, -height], [1, -height], [1, height], [0, height]]), 4)


def _arch(chance: np.random.Generator) -> Mesh:
    t = np.linspace(0, chance.uniform(0.9, 1.2) * np.pi, 24)
    return _swept(np.column_stack([np.cos(t), np.sin(t), 0 * t]), chance.uniform(0.15, 0.25))


def _cone(chance: np.random.Generator) -> Mesh:
    height = chance.uniform(1.4, 2.2)
    return _turned(np.array([[0, 0], [1, 0], [0, height]]))


def _ring(chance: np.random.Generator) -> Mesh:
    thick = chance.uniform(0.2, 0.4)
    angle = np.linspace(0, 2 * np.pi, 11)
    return _turned(np.column_stack([1 + thick * np.cos(angle), thick * np.sin(angle)]))


def _spring(chance: np.random.Generator) -> Mesh:
    angle = np.linspace(0, 2 * np.pi * chance.uniform(2, 3), 48)
    return _swept(np.column_stack([np.cos(angle), np.sin(angle), angle / 5]), 0.2)


def _bowl(chance: np.random.Generator) -> Mesh:
    return _turned(_arc(-_QUARTER, chance.uniform(-0.2, 0.2)))


def _dumbbell(chance: np.random.Generator) -> Mesh:
    size, reach = chance.uniform(0.4, 0.55), chance.uniform(0.9, 1.1)
    below, above = _arc(-_QUARTER, 1.3, radius=size, height=-reach), _arc(-1.3, _QUARTER, radius=size, height=reach)
    return _turned(np.concatenate([below, above]))


def _bracket(chance: np.random.Generator) -> Mesh:
    thick = chance.uniform(0.35, 0.5)
    corner = np.array([[0, 0], [2, 0], [2, thick], [thick, thick], [thick, 2], [0, 2]])
    return _extruded(corner - thick / 2, chance.uniform(0.3, 0.6))


def _cross(chance: np.random.Generator) -> Mesh:
    thick = chance.uniform(0.2, 0.3)
    arm = np.array([[1, -thick], [1, thick], [thick, thick]])
    turn = np.array([[0, 1], [-1, 0]])
    return _extruded(np.concatenate([arm @ np.linalg.matrix_power(turn, k) for k in range(4)]), thick)


def _knot(chance: np.random.Generator) -> Mesh:
    t = np.linspace(0, 2 * np.pi, 64)
    curve = [np.sin(t) + 2 * np.sin(2 * t), np.cos(t) - 2 * np.cos(2 * t), -np.sin(3 * t)]
    return _swept(np.column_stack(curve), chance.uniform(0.3, 0.5))


def _star(chance: np.random.Generator) -> Mesh:
    angle = np.pi * np.arange(10) / 5
    size = np.where(np.arange(10) % 2, chance.uniform(0.35, 0.45), 1.0)
    return _extruded(np.column_stack([size * np.cos(angle), size * np.sin(angle)]), 0.2)


def _stairs(chance: np.random.Generator) -> Mesh:
    steps = int(chance.integers(3, 6))
    up = [[steps - k, k + upper] for k in range(steps) for upper in (0, 1)]
    return _extruded(np.array([[0, 0], *up]) - 0.01, 0.4 * steps)


def _hourglass(chance: np.random.Generator) -> Mesh:
    waist = chance.uniform(0.1, 0.2)
    return _turned(np.array([[0, -1.2], [1, -1.2], [waist, 0], [1, 1.2], [0, 1.2]]))


def _frame(chance: np.random.Generator) -> Mesh:
    thick = chance.uniform(0.15, 0.25)
    section = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1], [-1, -1]])
    return _turned(np.array([1, 0]) + thick * section, 4)


def _band(chance: np.random.Generator) -> Mesh:
    t = np.linspace(0, 2 * np.pi, 40)[:, None]
    s = chance.uniform(0.25, 0.4) * np.linspace(-1, 1, 5)[None, :]
    reach = 1 + s * np.cos(t / 2)
    return _grid(np.stack([reach * np.cos(t), reach * np.sin(t), s * np.sin(t / 2)], -1))


_COMMON: dict[str, Callable[[np.random.Generator], Mesh]] = {
    "ball": _ball,
    "box": _box,
    "arch": _arch,
    "cone": _cone,
    "ring": _ring,
    "spring": _spring,
    "bowl": _bowl,
    "dumbbell": _dumbbell,
    "bracket": _bracket,
    "cross": _cross,
}
_STRANGE: dict[str, Callable[[np.random.Generator], Mesh]] = {
    "hourglass": _hourglass,
    "knot": _knot,
    "star": _star,
    "stairs": _stairs,
    "frame": _frame,
    "band": _band,
}
_SOLIDS = {**_COMMON, **_STRANGE}
COMMON, STRANGE = tuple(_COMMON), tuple(_STRANGE)
