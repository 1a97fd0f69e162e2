"""Clouds of points: the generated set, and those in files of every layout."""

import dataclasses
import hashlib
import io
import json

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from bench import clouds, data, solids
from bench.data import modelnet, points, shapes
from bench.errors import InputError
from bench.planning import cells, suite
from bench.running import jobs
from bench.task import Sizes, Task

SIZES = Sizes(train=30, heldout=12, attacker=18, labelled=12, test=12)
CLASSES = ("chair", "desk", "sofa")


def task_of(path, sizes=SIZES):
    info = data.info(str(path))
    return Task(info, info.model, info.recipe, sizes)


def planned(path, sizes=SIZES):
    text = {
        "name": "x",
        "tasks": [{"dataset": str(path), "model": "pointnet-basic", "parts": dataclasses.asdict(sizes)}],
        "defenses": [{"name": "none"}],
        "attacks": [{"name": "none"}],
    }
    return cells.make(suite.parse(text, "here", "here"))


# The generated set


class TestShapes:
    def test_every_cloud_is_the_one_of_this_digest(self):
        info = data.info("shapes")
        digests = data.prepare(info, Sizes(100, 60, 60, 60, 60))
        assert digests == DIGESTS, "other clouds than ever: published numbers on shapes no longer hold"

    def test_parts_are_disjoint_and_hold_every_class(self):
        info = data.info("shapes")
        found = data.whole(Task(info, info.model, info.recipe))
        splits = (found.train, found.heldout, found.attacker, found.test)
        assert [len(split) for split in splits] == [
            info.sizes.train,
            info.sizes.heldout,
            info.sizes.attacker,
            info.sizes.test,
        ]
        rows = {one.numpy().tobytes() for split in splits for one in split.inputs.stored}
        assert len(rows) == shapes._COUNT
        for split in (*splits, found.attacker.take(found.labelled)):
            assert set(split.y.tolist()) == set(range(10))
        assert found.train.inputs.stored.dtype == torch.int16
        assert abs(found.train.x.std() - 1) < 0.01 and found.train.x.mean().abs() < 0.01

    def test_rows_are_their_solids_and_made_alone(self, monkeypatch):
        shapes._made.cache_clear()
        asked = []
        cloud = solids.cloud
        monkeypatch.setattr(solids, "cloud", lambda solid, *rest: asked.append(solid) or cloud(solid, *rest))
        source = data.source(data.info("shapes"))
        stored = source.stored("train", np.array([13, 7]), source.shape())
        assert asked == [solids.COMMON[3], solids.COMMON[7]]
        assert stored.shape == (2, *source.shape()) and np.abs(stored).max() <= 10_000
        again = source.stored("train", np.array([7]), source.shape())
        assert len(asked) == 2 and np.array_equal(again[0], stored[1])
        with pytest.raises(ValueError, match="read-only"):
            shapes._made(7)[0, 0] = 1

    def test_it_lies_nowhere_and_needs_no_download(self):
        info = data.info("shapes")
        assert data.places(info) == []
        data.require_here(info)


DIGESTS = {
    "train": "6242f029aa849d43",
    "heldout": "30980ab58002ac81",
    "attacker": "fb5144b4a651e84b",
    "test": "1686394d8725bd23",
}


# Files of each layout


def tetrahedron(seed):
    """Vertices and faces of some mesh."""
    return np.random.default_rng(seed).normal(size=(4, 3)), np.array([[0, 1, 2], [0, 1, 3], [0, 2, 3], [1, 2, 3]])


def off(seed, glued=False):
    vertices, faces = tetrahedron(seed)
    lines = ["4 4 0", *(" ".join(map(str, v)) for v in vertices), *(f"3 {a} {b} {c}" for a, b, c in faces)]
    return ("OFF" + ("" if glued else "\n") + "\n".join(lines) + "\n").encode()


def obj(seed):
    vertices, faces = tetrahedron(seed)
    lines = [f"v {x} {y} {z}" for x, y, z in vertices] + [f"f {a + 1} {b + 1} {c + 1}" for a, b, c in faces]
    return ("mtllib gone.mtl\n" + "\n".join(lines)).encode()


def ply(seed):
    vertices, faces = tetrahedron(seed)
    head = "ply\nformat ascii 1.0\nelement vertex 4\n" + "".join(f"property float {axis}\n" for axis in "xyz")
    head += "element face 4\nproperty list uchar int vertex_indices\nend_header\n"
    lines = [f"{x} {y} {z}" for x, y, z in vertices] + [f"3 {a} {b} {c}" for a, b, c in faces]
    return (head + "\n".join(lines) + "\n").encode()


def listed(seed, count=40):
    return np.random.default_rng(seed).normal(size=(count, 3)).round(4)


def txt(seed, separator=" "):
    return "\n".join(separator.join(map(str, [*row, 0, 0, 1])) for row in listed(seed)).encode()


def npy(found):
    buffer = io.BytesIO()
    np.save(buffer, found, allow_pickle=True)
    return buffer.getvalue()


WRITERS = {
    "off": off,
    "obj": obj,
    "ply": ply,
    "txt": txt,
    "pts": txt,
    "npy": lambda seed: npy(listed(seed)),
}


def foldered(folder, kind="off", layout="{split}/{name}", train=20, test=4):
    """A folder of files of three classes, in turn."""
    for split, count in (("train", train), ("test", test)):
        for number in range(3 * count):
            name = CLASSES[number % 3]
            below = folder / layout.format(split=split, name=name)
            below.mkdir(parents=True, exist_ok=True)
            seed = number + 1000 * (split == "test")
            (below / f"{name}_{seed:04}.{kind}").write_bytes(WRITERS[kind](seed))
    return folder


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("layout", ["{split}/{name}", "{name}/{split}"])
def test_a_folder_of_files_is_a_task(tmp_path, kind, layout):
    task = task_of(foldered(tmp_path / "set", kind, layout))
    count = 1024 if kind in ("off", "obj", "ply") else 40
    assert (task.kind, task.shape, task.classes) == ("points", (3, count), 3)
    assert data.source(task.info).classes == CLASSES
    assert (len(data.source(task.info).labels("train")), len(data.source(task.info).labels("test"))) == (60, 12)
    found = data.whole(task)
    known = {}
    for number in [*range(60), *range(1000, 1012)]:
        known[clouds.decoded(f"x.{kind}", WRITERS[kind](number), count).tobytes()] = (number % 1000) % 3
    seen = [
        (cloud.numpy().tobytes(), label)
        for split in (found.train, found.heldout, found.attacker, found.test)
        for cloud, label in zip(split.inputs.stored, split.y.tolist(), strict=True)
    ]
    assert len({cloud for cloud, _ in seen}) == 72
    assert all(known[cloud] == label for cloud, label in seen)
    planned(tmp_path / "set")


def test_folders_of_classes_alone_give_a_fifth_to_the_test(tmp_path):
    for number in range(75):
        below = tmp_path / "set" / CLASSES[number % 3]
        below.mkdir(parents=True, exist_ok=True)
        (below / f"{number}.npy").write_bytes(npy(listed(number)))
    info = data.info(str(tmp_path / "set"))
    assert (info.sizes.test, info.model, info.kind, info.order) == (15, "pointnet", "points", "points")
    assert data.source(info).splits() == ("train",)


def test_the_same_points_come_from_any_reader(tmp_path):
    """A mesh is sampled on its triangles, whatever the format; a list is taken over, in some order."""
    for kind in ("off", "obj", "ply"):
        sampled = clouds.decoded(f"a.{kind}", WRITERS[kind](5), 3000).T / clouds.TOP
        vertices, faces = tetrahedron(5)
        dense = solids.on_surface((vertices, faces), 200_000, np.random.default_rng(0))
        centre, reach = dense.mean(0), np.sqrt(((dense - dense.mean(0)) ** 2).sum(1).max())
        corners = (vertices - centre) / reach
        gaps = []
        for a, b, c in corners[faces]:
            normal = np.cross(b - a, c - a)
            gaps.append(np.abs((sampled - a) @ (normal / np.linalg.norm(normal))))
        # Each point lies on the plane of one of the triangles, up to where the sample's own centre and reach lie.
        assert np.quantile(np.min(gaps, axis=0), 0.9) < 0.08
    raw = listed(7)
    scaled = solids.in_unit_ball(raw)
    expected = sorted(map(tuple, np.round(scaled * 10_000).astype(int).tolist()))
    for kind, content in (("txt", txt(7)), ("txt", txt(7, ",")), ("pts", txt(7)), ("npy", npy(raw))):
        stored = clouds.decoded(f"a.{kind}", content, 40)
        assert sorted(map(tuple, stored.T.tolist())) == expected


def test_longer_lists_are_sampled_and_shorter_ones_repeat_points():
    long = listed(1, 500)
    content = npy(long)
    stored = clouds.decoded("a.npy", content, 100)
    assert np.array_equal(stored, clouds.decoded("b.npy", content, 100))
    assert len(np.unique(stored, axis=1).T) == 100
    # No stretch of the file is preferred.
    chosen = np.random.Generator(
        np.random.PCG64(int.from_bytes(hashlib.sha256(content).digest()[:16], "big"))
    ).permutation(500)[:100]
    np.testing.assert_array_equal(stored.T, np.round(solids.in_unit_ball(long[chosen]) * 10_000))
    assert 10 < (chosen < 250).sum() < 90
    short = clouds.decoded("a.npy", npy(listed(2, 10)), 100)
    assert len(np.unique(short, axis=1).T) == 10


@given(arrays.arrays(np.float64, (7, 3), elements=st.floats(-1e6, 1e6)))
def test_stored_clouds_lie_in_the_unit_ball_about_their_mean(found):
    stored = clouds.quantised("a", found).astype(np.float64) / clouds.TOP
    assert stored.shape == (3, 7)
    assert np.linalg.norm(stored, axis=0).max() <= 1 + 1e-3
    assert np.abs(stored.mean(1)).max() < 1e-3
    if np.ptp(found, axis=0).max() > 1e-3:
        assert np.linalg.norm(stored, axis=0).max() >= 1 - 1e-3


def test_counts_may_stand_on_the_first_line():
    assert np.array_equal(clouds._read("a.off", off(3, glued=True))[0], clouds._read("a.off", off(3))[0])
    assert len(clouds._read("a.off", off(3, glued=True))[1]) == 4


def test_polygons_are_fans_of_triangles_and_colours_and_comments_are_passed_over():
    square = b"OFF # a square\n4 2 0\n0 0 0\n1 0 0\n1 1 0\n0 1 0\n\n4 0 1 2 3 255 0 0\n2 0 1\n"
    vertices, faces = clouds._read("a.off", square)
    assert vertices.shape == (4, 3)
    assert faces.tolist() == [[0, 1, 2], [0, 2, 3]]
    # Without faces its vertices are the points.
    assert clouds.held("a.off", b"OFF\n2 0 0\n0 0 0\n1 0 0\n") == 2
    assert clouds.held("a.off", square) is None


BAD_FILES = {
    "counts": ("a.off", off(1)[:-40], "expected a mesh in the format off"),
    "no mesh": ("a.obj", b"nothing here", "expected a mesh in the format obj|expected points, got none"),
    "index": ("a.off", b"OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 7\n", "vertices 0 to 2, got 0, 7"),
    "obj index": ("a.obj", b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 9\n", "format obj|vertices 0 to 2"),
    "not ply": ("a.ply", ply(1)[5:], "expected a mesh in the format ply"),
    "header": ("a.off", b"PLY\n1 0 0\n0 0 0\n", "the first line is 'PLY'"),
    "flat": ("a.off", b"OFF\n3 1 0\n0 0 0\n0 0 0\n0 0 0\n3 0 1 2\n", "with an area, got none"),
    "columns": ("a.txt", b"1 2\n3 4\n", "lines of at least three numbers"),
    "words": ("a.pts", b"1 2 x\n", "lines of at least three numbers"),
    "binary": ("a.txt", b"\xff\xfe\x00", "lines of at least three numbers"),
    "empty": ("a.txt", b"", "expected points, got none"),
    "nan": ("a.txt", b"1 2 nan\n1 2 3\n", "finite coordinates"),
    "huge": ("a.txt", b"1 2 1e200\n1 2 3\n", "sensible size"),
    "pickle": ("a.npy", npy(np.array([{"a": 1}], dtype=object)), "array of numbers in the format npy"),
    "text array": ("a.npy", npy(np.array(["a"])), "shape .points, 3 or more., got <U1"),
    "flat array": ("a.npy", npy(np.zeros(6)), r"shape \(points, 3 or more\), got float64 of shape \(6,\)"),
    "cut array": ("a.npy", npy(listed(1))[:-9], "in the format npy"),
    "archive": ("a.npy", b"PK\x03\x04nothing", "in the format npy"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_are_named(case):
    name, content, message = BAD_FILES[case]
    with pytest.raises(InputError, match=message) as caught:
        clouds.decoded(name, content, 16)
    assert str(caught.value).startswith(name)


def test_a_bad_file_fails_the_jobs_of_its_side_and_is_named(tmp_path):
    folder = foldered(tmp_path / "set")
    plan = planned(folder)
    info = task_of(folder).info
    split, rows = data.parts.cut(data.source(info), info, SIZES)["train"]
    name, _ = next(data.source(info).encoded(split, rows[:1]))
    (tmp_path / "bad").write_bytes(b"OFF\n1 1 0\n")
    # Known to the plan by its content, so that another one is refused at once; planned so, it is named when it is read.
    from pathlib import Path

    Path(name).write_bytes(b"OFF\n1 1 0\n")
    clean = next(job for job in plan.jobs.values() if job.kind == "stage")
    assert "for which this run was planned" in jobs.run(clean, {}, "cpu").error
    again = next(job for job in planned(folder).jobs.values() if job.kind == "stage")
    outcome = jobs.run(again, {}, "cpu")
    assert (outcome.status, outcome.error_type) == ("failed", "InputError")
    assert name in outcome.error and "expected a mesh" in outcome.error


def test_an_attacking_process_reads_no_file_of_the_owner(tmp_path):
    task = task_of(foldered(tmp_path / "set"))
    source = data.source(task.info)
    asked, whole = [], source.encoded
    source.encoded = lambda split, rows: asked.extend((split, int(row)) for row in rows) or whole(split, rows)
    data.parts.read(source, task.info, task.sizes, "attacker")
    split, rows = data.parts.cut(source, task.info, task.sizes)["attacker"]
    assert set(asked) == {(split, int(row)) for row in rows}


def test_text_beside_images_is_no_cloud(tmp_path):
    from PIL import Image

    for name in CLASSES:
        below = tmp_path / "set" / name
        below.mkdir(parents=True)
        (below / "notes.txt").write_text("1 2 3")
        for number in range(20):
            Image.fromarray(np.full((8, 8), number, dtype=np.uint8)).save(below / f"{number}.png")
    assert data.info(str(tmp_path / "set")).kind == "image"


def test_classes_that_are_missing_are_named(tmp_path):
    folder = foldered(tmp_path / "set", layout="{name}/{split}")
    (folder / "lamp" / "test").mkdir(parents=True)
    (folder / "lamp" / "test" / "a.off").write_bytes(off(1))
    with pytest.raises(InputError, match="expected classes chair, desk, sofa, got lamp"):
        data.info(str(folder))
    (folder / "lamp" / "train").mkdir()
    (folder / "lamp" / "train" / "a.off").write_bytes(off(1))
    with pytest.raises(InputError, match=r"expected each of 4 classes.*'lamp'"):
        planned(folder)


def test_no_data_is_said_so(tmp_path):
    (tmp_path / "set" / "chair").mkdir(parents=True)
    (tmp_path / "set" / "chair" / "a.off").write_bytes(off(1))
    with pytest.raises(InputError, match="at least two classes, got chair"):
        data.info(str(tmp_path / "set"))


# HDF5


def hdf5(folder, counts=((24, 36), (12,)), many=50, names=CLASSES):
    """The layout of PointNet's edition; returns all clouds by split."""
    folder.mkdir(parents=True, exist_ok=True)
    chance, made = np.random.default_rng(0), {}
    for split, sizes in zip(("train", "test"), counts, strict=True):
        files, made[split] = [], []
        for number, size in enumerate(sizes):
            found = chance.normal(size=(size, many, 3)).astype(np.float32)
            with h5py.File(folder / f"ply_data_{split}{number}.h5", "w") as file:
                file.create_dataset("data", data=found, compression="gzip", chunks=(4, many, 1))
                file.create_dataset("label", data=(np.arange(size) % 3).astype(np.uint8)[:, None])
            files.append(f"data/modelnet40_ply_hdf5_2048/ply_data_{split}{number}.h5")
            made[split] += list(found)
        (folder / f"{split}_files.txt").write_text("\n".join(files) + "\n")
    (folder / "shape_names.txt").write_text("\n".join(names) + "\n")
    return made


def test_rows_of_hdf5_files_arrive_where_they_belong(tmp_path):
    made = hdf5(tmp_path / "set")
    task = task_of(tmp_path / "set")
    source = data.source(task.info)
    assert (task.shape, task.classes, source.classes) == ((3, 50), 3, CLASSES)
    found = data.whole(task)
    cut = data.parts.cut(source, task.info, SIZES)
    for part, split in (("train", found.train), ("attacker", found.attacker), ("test", found.test)):
        name, rows = cut[part]
        for row, cloud, label in zip(rows, split.inputs.stored, split.y, strict=True):
            expected = solids.in_unit_ball(made[name][row].astype(np.float64)).T
            np.testing.assert_array_equal(cloud.numpy(), np.round(expected * 10_000))
            assert label == (row if row < 24 else row - 24) % 3
    planned(tmp_path / "set")


def test_of_hdf5_files_the_first_points_count(tmp_path, monkeypatch):
    made = hdf5(tmp_path / "set")
    monkeypatch.setattr(points, "POINTS", 20)
    source = data.source(task_of(tmp_path / "set").info)
    assert source.shape() == (3, 20)
    stored = source.stored("train", np.array([30, 2]), (3, 20))
    for row, cloud in zip((30, 2), stored, strict=True):
        expected = solids.in_unit_ball(made["train"][row][:20].astype(np.float64)).T
        np.testing.assert_array_equal(cloud, np.round(expected * 10_000))


def test_hdf5_files_that_cannot_be_used_are_named(tmp_path):
    hdf5(tmp_path / "cut")
    path = tmp_path / "cut" / "ply_data_train1.h5"
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(InputError, match=r"train1\.h5: expected a whole HDF5 file"):
        data.info(str(tmp_path / "cut"))
    path.unlink()
    with pytest.raises(InputError, match=r"missing: ply_data_train1\.h5"):
        data.info(str(tmp_path / "cut"))
    for case, (key, found), message in (
        ("key", ("clouds", np.zeros((3, 5, 3), np.float32)), "expected 'data' and 'label', got clouds, label"),
        ("shape", ("data", np.zeros((3, 5), np.float32)), r"\(N, points, 3\).*got \(3, 5\) and \(3,\)"),
        ("type", ("data", np.zeros((3, 5, 3), np.int32)), "expected floats and integers, got int32"),
    ):
        (tmp_path / case).mkdir()
        with h5py.File(tmp_path / case / "train.h5", "w") as file:
            file["label"] = np.arange(3)
            file[key] = found
        with pytest.raises(InputError, match=message):
            data.info(str(tmp_path / case))
    hdf5(tmp_path / "few", names=CLASSES[:2])
    with pytest.raises(InputError, match="expected labels from 0 to 1, got 2"):
        data.info(str(tmp_path / "few"))
    (tmp_path / "few" / "ply_data_train0.h5").unlink()
    hdf5(tmp_path / "test", counts=((), (12,)))
    with pytest.raises(InputError, match=r"expected \*train\*\.h5, got none"):
        data.info(str(tmp_path / "test"))


# ShapeNetPart


def shapenet(folder, inner="", kind="txt", lists=True):
    folder.mkdir(parents=True)
    synsets = {"Airplane": "02691156", "Bag": "02773838", "Cap": "02954340", "Empty": "03001627"}
    (folder / "synsetoffset2category.txt").write_text("".join(f"{n}\t{s}\n" for n, s in synsets.items()))
    entries = []
    for number in range(75):
        synset = list(synsets.values())[number % 3]
        below = folder / synset / inner
        below.mkdir(parents=True, exist_ok=True)
        (below / f"shape{number}.{kind}").write_bytes(txt(number))
        entries.append(f"shape_data/{synset}/shape{number}")
    if lists:
        (folder / "train_test_split").mkdir()
        for split, part in (("train", entries[:60]), ("val", entries[60:63]), ("test", entries[63:])):
            place = folder / "train_test_split" / f"shuffled_{split}_file_list.json"
            place.write_text(json.dumps(part))
    return folder


@pytest.mark.parametrize(("inner", "kind"), [("", "txt"), ("points", "pts")])
def test_shapenet_has_the_splits_of_its_lists(tmp_path, inner, kind):
    task = task_of(shapenet(tmp_path / "set", inner, kind))
    source = data.source(task.info)
    assert (source.classes, task.shape) == (("Airplane", "Bag", "Cap"), (3, 40))
    assert source.labels("train").tolist() == [n % 3 for n in range(60)]
    assert source.labels("test").tolist() == [n % 3 for n in range(63, 75)]
    stored = source.stored("test", np.array([4]), (3, 40))
    assert np.array_equal(stored[0], clouds.decoded(f"a.{kind}", txt(67), 40))
    planned(tmp_path / "set")


def test_shapenet_without_lists_is_training_data(tmp_path):
    source = data.source(task_of(shapenet(tmp_path / "set", lists=False)).info)
    assert source.splits() == ("train",) and len(source.labels("train")) == 75


def test_lists_that_lead_nowhere_are_named(tmp_path):
    folder = shapenet(tmp_path / "set")
    (folder / "02773838" / "shape1.txt").unlink()
    with pytest.raises(InputError, match="expected a file for 'shape_data/02773838/shape1'"):
        data.info(str(folder))
    place = folder / "train_test_split" / "shuffled_train_file_list.json"
    for content, message in (("[1", "a list of files as JSON"), ("{}", "expected a list of files, got dict")):
        place.write_text(content)
        with pytest.raises(InputError, match=message):
            data.info(str(folder))
    (folder / "synsetoffset2category.txt").write_text("Airplane ../elsewhere\n")
    with pytest.raises(InputError, match="a name and a synset"):
        data.info(str(folder))


# ModelNet by name


@pytest.mark.parametrize("name", modelnet.INFOS)
def test_modelnet_is_found_under_the_names_that_it_is_published_by(tmp_path, monkeypatch, name):
    monkeypatch.setenv("OWNBENCH_DATA", str(tmp_path))
    info = data.info(name)
    with pytest.raises(InputError, match="Nothing is downloaded") as caught:
        data.source(info)
    assert str(tmp_path / modelnet._FOLDERS[name][-1]) in str(caught.value)
    assert data.places(info) == [tmp_path / name]
    for folder in reversed(modelnet._FOLDERS[name]):
        foldered(tmp_path / folder, layout="{name}/{split}")
        assert data.places(info) == [tmp_path / folder]
        assert data.source(info).shape() == (3, 1024)
        with pytest.raises(InputError, match=f"expected {info.classes} classes, got 3"):
            data.prepare(info, SIZES)


def test_a_missing_library_is_said_with_its_remedy(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "trimesh", None)
    with pytest.raises(InputError, match=r"package 'trimesh'.*pip install 'ownbench\[points\]'"):
        clouds.decoded("a.obj", obj(1), 10)
    # Lists of points need no library.
    assert clouds.decoded("a.txt", txt(1), 10).shape == (3, 10)
