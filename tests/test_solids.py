"""Solids: surfaces sampled by area, and clouds that no simple measure tells apart."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bench import data, solids
from bench.task import Task

ALL = (*solids.COMMON, *solids.STRANGE)


def chance(*entropy):
    return np.random.Generator(np.random.PCG64(list(entropy)))


def test_points_on_a_surface_are_uniform_by_area():
    # A unit square as two triangles, and one of a tenth of its area, of which a corner is cut off in parts.
    vertices = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [5, 0, 0], [5.2, 0, 0], [5, 1, 0]], dtype=float)
    faces = np.array([[0, 1, 2], [0, 2, 3], [4, 5, 6]])
    points = solids.on_surface((vertices, faces), 20_000, chance(1))
    square = points[points[:, 0] < 2]
    assert abs(len(square) / 20_000 - 1 / 1.1) < 0.01
    assert (points[:, 2] == 0).all()
    for axis in (0, 1):
        assert stats.kstest(square[:, axis], "uniform").pvalue > 1e-3
    corner = points[points[:, 0] > 2]
    assert ((corner[:, 0] - 5) / 0.2 + corner[:, 1] <= 1 + 1e-9).all()
    assert abs(((corner[:, 0] - 5) / 0.2 + corner[:, 1] < 0.5).mean() - 0.25) < 0.03


def test_a_surface_without_area_is_refused():
    with pytest.raises(ValueError, match="with an area, got none"):
        solids.on_surface((np.zeros((3, 3)), np.array([[0, 1, 2]])), 5, chance(1))
    with pytest.raises(ValueError, match="with an area, got none"):
        solids.on_surface((np.zeros((3, 3)), np.empty((0, 3), dtype=np.int64)), 5, chance(1))


@given(st.integers(0, 2**32))
def test_rotations_are_rotations(seed):
    turn = solids.rotation(chance(seed))
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(turn) > 0


def test_rotations_are_uniform():
    source = chance(2)
    turns = np.stack([solids.rotation(source) for _ in range(3000)])
    # Each column is uniform on the sphere, so each entry in [-1, 1]; the angle has density (1 - cos) / pi.
    for entry in turns.reshape(-1, 9).T:
        assert stats.kstest(entry, "uniform", args=(-1, 2)).pvalue > 1e-4
    angle = np.arccos(np.clip((np.trace(turns, axis1=1, axis2=2) - 1) / 2, -1, 1))
    assert stats.kstest(angle, lambda t: (t - np.sin(t)) / np.pi).pvalue > 1e-3


@pytest.mark.parametrize("solid", ALL)
def test_a_solid_is_a_surface_in_the_unit_ball(solid):
    for seed in range(5):
        points = solids.cloud(solid, 64, chance(seed))
        distance = np.linalg.norm(points, axis=1)
        assert points.shape == (64, 3) and np.isfinite(points).all()
        assert 0.7 - 1e-9 <= distance.max() <= 1 + 1e-9
        assert 48 <= len(np.unique(points.round(9), axis=0)) <= 64
        vertices, faces = solids._SOLIDS[solid](chance(seed))
        assert faces.min() >= 0 and faces.max() < len(vertices)
        # Solid in space, not a sheet.
        assert np.linalg.svd(vertices - vertices.mean(0))[1][2] > 0.1


def test_a_ball_is_round_and_a_box_has_the_area_of_its_sides():
    ball = solids.on_surface(solids._ball(chance(0)), 5000, chance(1))
    high = np.abs(ball[:, 2]).max()
    np.testing.assert_allclose((ball[:, :2] ** 2).sum(1) + (ball[:, 2] / high) ** 2, 1, atol=0.06)
    vertices, faces = solids._box(chance(0))
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2
    height, side = vertices[:, 2].max(), np.sqrt(2)
    assert area == pytest.approx(2 * side**2 + 4 * side * 2 * height)


def test_extruded_outlines_have_the_area_of_floor_walls_and_lid():
    for solid, outline in ((solids._cross, 12), (solids._bracket, 6)):
        vertices, faces = solid(chance(3))
        a, b, c = (vertices[faces[:, k]] for k in range(3))
        area = np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2
        ring = vertices[outline : 2 * outline]
        following = np.roll(ring, -1, axis=0)
        floor = abs((ring[:, 0] * following[:, 1] - ring[:, 1] * following[:, 0]).sum()) / 2
        walls = np.linalg.norm(following - ring, axis=1).sum() * np.ptp(vertices[:, 2])
        assert area == pytest.approx(2 * floor + walls)


def measures(clouds):
    """Bounding box, radii and second moments, also in order of size, of clouds of shape (N, 3, points)."""
    high, low = clouds.max(2), clouds.min(2)
    centred = clouds - clouds.mean(2, keepdims=True)
    moments = np.einsum("nip,njp->nij", centred, centred) / clouds.shape[2]
    radius = np.linalg.norm(clouds, axis=1)
    sizes = [high, low, high - low, np.sort(high - low, axis=1), np.linalg.eigvalsh(moments)]
    sizes += [moments.reshape(-1, 9)[:, [0, 1, 2, 4, 5, 8]], radius.max(1)[:, None], radius.mean(1)[:, None]]
    return np.concatenate(sizes, axis=1)


def test_no_linear_classifier_tells_shapes_by_their_size_and_moments():
    info = data.info("shapes")
    parts = data.whole(Task(info, info.model, info.recipe))
    train, test = (split.inputs.stored.numpy() / info.top for split in (parts.train, parts.test))
    linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    linear.fit(measures(train), parts.train.y.numpy())
    accuracy = linear.score(measures(test), parts.test.y.numpy())
    assert 0.2 < accuracy < 0.6
