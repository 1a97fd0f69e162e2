"""Datasets: whose rows are whose, and what is said of data that cannot be used."""

import dataclasses
import json
import struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from bench import data
from bench.data import vision
from bench.errors import InputError
from bench.planning import cells, suite
from bench.running import jobs
from bench.stream import Stream
from bench.task import Sizes, Task

SIZES = Sizes(train=60, heldout=20, attacker=30, labelled=20, test=20)
CLASSES = ("circle", "square", "line")


def encoded(pixels, form="PNG"):
    import io

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def pictures(count, size=(16, 16), grey=False, seed=0):
    """Pictures of three classes, each its own pattern, as PNG bytes with labels in turn."""
    chance = np.random.default_rng(seed)
    found = []
    for number in range(count):
        pixels = chance.integers(0, 60, (*size, 3), dtype=np.uint8)
        pixels[number % 3 :: 3] += 150
        found.append((encoded(pixels[..., 0] if grey else pixels), number % 3))
    return found


def table(rows, image="image", label="label", names=CLASSES, kind=None):
    column = pa.array([{"bytes": content, "path": f"{n}.png"} for n, (content, _) in enumerate(rows)])
    made = pa.table({image: column, label: pa.array([y for _, y in rows], kind or pa.int64())})
    if names:
        features = {image: {"_type": "Image"}, label: {"names": list(names), "_type": "ClassLabel"}}
        made = made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    return made


def stored(folder, train=120, test=30, **options):
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table(pictures(train), **options), folder / "train-00000-of-00001.parquet", row_group_size=32)
    if test:
        pq.write_table(table(pictures(test, seed=1), **options), folder / "test-00000-of-00001.parquet")
    return folder


def foldered(folder, count=120, split=""):
    for number, (content, label) in enumerate(pictures(count)):
        below = folder / split / CLASSES[label]
        below.mkdir(parents=True, exist_ok=True)
        (below / f"{number:04}.png").write_bytes(content)
    return folder


def task_of(path, sizes=SIZES):
    info = data.info(str(path))
    return Task(info, info.model, info.recipe, sizes)


def test_parts_are_those_of_the_task_and_disjoint(parts):
    sizes = [len(split) for split in (parts.train, parts.heldout, parts.attacker, parts.test)]
    assert sizes == [800, 100, 300, 597]
    assert parts.labelled == 100
    from sklearn.datasets import load_digits

    everything = torch.cat([split.x for split in (parts.train, parts.heldout, parts.attacker, parts.test)])
    raw = (everything * 0.3756 + 0.3053) * 16
    known = torch.from_numpy(load_digits().images).float().flatten(1)
    # The same scans, each exactly once.
    assert torch.equal(raw.round().flatten(1).sort(0).values, known.sort(0).values)


def test_inputs_are_normalised_by_the_owners_statistics(parts, task):
    assert abs(parts.train.x.mean().item()) < 1e-3
    assert abs(parts.train.x.std().item() - 1) < 1e-3
    white = task.normalised(torch.ones(1, 1, 8, 8))
    assert torch.allclose(white, torch.tensor((1 - 0.3053) / 0.3756))


def test_a_new_model_depends_on_the_stream_alone(task):
    torch.manual_seed(1)
    first = task.new_model(Stream(("init",)))
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = task.new_model(Stream(("init",)))
    assert torch.equal(first.conv1.weight, second.conv1.weight)
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(first.conv1.weight, task.new_model(Stream(("other",))).conv1.weight)


class TestParquet:
    @pytest.mark.parametrize("columns", [("image", "label"), ("img", "fine_label")])
    def test_every_row_arrives_where_it_belongs(self, tmp_path, columns):
        folder = stored(tmp_path / "set", image=columns[0], label=columns[1])
        task = task_of(folder)
        assert (task.info.classes, task.info.shape, task.info.name) == (3, (3, 16, 16), "set")
        found = data.whole(task)
        rows = {encoded_pixels(content): label for content, label in pictures(120)}
        seen = []
        for split in (found.train, found.heldout, found.attacker):
            for pixels, label in zip(split.inputs.stored, split.y, strict=True):
                assert rows[pixels.numpy().tobytes()] == label
                seen.append(pixels.numpy().tobytes())
        assert len(seen) == len(set(seen)) == 110
        tests = {encoded_pixels(content): label for content, label in pictures(30, seed=1)}
        assert all(tests[x.numpy().tobytes()] == y for x, y in zip(found.test.inputs.stored, found.test.y, strict=True))
        assert torch.allclose(found.test.x, (found.test.inputs.stored / 255 - 0.5) / 0.25)

    def test_a_split_in_several_files_and_below_data_is_one(self, tmp_path):
        rows = pictures(150)
        (tmp_path / "set" / "data").mkdir(parents=True)
        for number, part in enumerate((rows[:70], rows[70:])):
            pq.write_table(table(part), tmp_path / "set" / "data" / f"train-{number:05}-of-00002.parquet")
        whole = stored(tmp_path / "one", train=150, test=0)
        several, one = (data.whole(task_of(path)) for path in (tmp_path / "set", whole))
        assert torch.equal(several.train.inputs.stored, one.train.inputs.stored)
        assert torch.equal(several.test.y, one.test.y)

    def test_it_is_found_below_the_data_folder_and_has_the_same_jobs_wherever_it_lies(self, tmp_path, monkeypatch):
        def ids(path):
            text = {
                "name": "x",
                "tasks": [{"dataset": path, "model": "resnet8", "parts": dataclasses.asdict(SIZES)}],
                "defenses": [{"name": "uchida"}],
                "attacks": [{"name": "none"}],
            }
            return set(cells.make(suite.parse(text, "here", "here")).jobs)

        first = stored(tmp_path / "first")
        (tmp_path / "deep").mkdir()
        monkeypatch.setenv("OWNBENCH_DATA", str(tmp_path / "deep"))
        expected = ids(str(first))
        first.rename(tmp_path / "deep" / "second")
        assert ids("second") == expected

    def test_other_data_than_planned_is_refused_in_the_worker(self, tmp_path):
        folder = stored(tmp_path / "set")
        text = {
            "name": "x",
            "tasks": [{"dataset": str(folder), "model": "resnet8", "parts": dataclasses.asdict(SIZES)}],
            "defenses": [{"name": "none"}],
            "attacks": [{"name": "none"}],
        }
        plan = cells.make(suite.parse(text, "here", "here"))
        pq.write_table(table(pictures(120, seed=9)), folder / "train-00000-of-00001.parquet")
        clean = next(job for job in plan.jobs.values() if job.kind == "stage")
        outcome = jobs.run(clean, {}, "cpu")
        assert (outcome.status, outcome.error_type) == ("failed", "InputError")
        assert "for which this run was planned" in outcome.error

    def test_an_attacking_process_decodes_no_row_of_the_owner(self, tmp_path):
        task = task_of(stored(tmp_path / "set"))
        source = data.source(task.info)
        asked = []
        whole = source.encoded
        source.encoded = lambda split, rows: asked.extend((split, int(row)) for row in rows) or whole(split, rows)
        data.parts.read(source, task.info, task.sizes, "attacker")
        split, rows = data.parts.cut(source, task.info, task.sizes)["attacker"]
        assert set(asked) == {(split, int(row)) for row in rows}


def encoded_pixels(content):
    import io

    return np.ascontiguousarray(np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).transpose(2, 0, 1)).tobytes()

    @pytest.mark.parametrize(
        "names",
        [("cifar-train.parquet", "cifar-test.parquet"), ("default/train/0000.parquet", "default/test/0000.parquet")],
    )
    def test_a_split_is_a_word_in_the_name_of_a_file_or_its_folder(self, tmp_path, names):
        for name, count, seed in zip(names, (120, 30), (0, 1), strict=True):
            (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table(pictures(count, seed=seed)), tmp_path / "set" / name)
        source = data.source(task_of(tmp_path / "set").info)
        assert [len(source.labels(split)) for split in source.splits()] == [120, 30]


class TestFolder:
    def test_what_systems_and_editors_leave_is_no_data(self, tmp_path):
        folder = foldered(tmp_path / "set", 150)
        (folder / ".ipynb_checkpoints").mkdir()
        (folder / ".ipynb_checkpoints" / "x.png").write_bytes(ROWS[0][0])
        (folder / "line" / "._0.png").write_bytes(b"resource fork")
        (folder / "line" / "gone.png").symlink_to(tmp_path / "nowhere.png")
        (folder / "line" / "folder.png").mkdir()
        source = data.source(task_of(folder).info)
        assert source.classes == tuple(sorted(CLASSES))
        assert len(source.labels("train")) == 150
        (folder / "line" / "text.png").write_bytes(b"no image")
        task = task_of(folder, Sizes(90, 20, 20, 15, 21))
        with pytest.raises(InputError, match=r"text\.png: expected an image"):
            data.prepare(task.info, task.sizes)

    def test_a_class_only_in_the_test_split_is_refused(self, tmp_path):
        foldered(tmp_path / "set", 120, "train")
        foldered(tmp_path / "set", 30, "test")
        (tmp_path / "set" / "test" / "new").mkdir()
        (tmp_path / "set" / "test" / "new" / "a.png").write_bytes(ROWS[0][0])
        with pytest.raises(InputError, match="expected classes circle, line, square, got new"):
            data.info(str(tmp_path / "set"))

    def test_a_folder_a_class(self, tmp_path):
        task = task_of(foldered(tmp_path / "set", 150))
        found = data.whole(task)
        assert task.info.classes == 3
        assert data.source(task.info).classes == tuple(sorted(CLASSES))
        for split in (found.train, found.test):
            for pixels, label in zip(split.inputs.stored, split.y, strict=True):
                name = sorted(CLASSES)[label]
                # The bright lines of each class begin at their own row.
                assert pixels[:, CLASSES.index(name) :: 3].float().mean() > 150

    def test_train_and_test_folders_are_splits(self, tmp_path):
        foldered(tmp_path / "set", 120, "train")
        foldered(tmp_path / "set", 30, "test")
        assert data.source(task_of(tmp_path / "set").info).splits() == ("train", "test")


def changed(rows, number, entry):
    return [*rows[:number], entry, *rows[number + 1 :]]


def deep():
    """A PNG of 16 bits."""
    return encoded(np.full((16, 16), 40_000, dtype=np.uint16))


ROWS = pictures(120)
BAD = {
    "truncated": (None, "whole Parquet file"),
    "columns": (table(ROWS, image="picture"), "expected columns 'image' or 'img'.*picture"),
    "no struct": (pa.table({"image": [b"x"] * 3, "label": [0, 1, 2]}), "struct of bytes"),
    "text labels": (table([(c, str(y)) for c, y in ROWS], names=(), kind=pa.string()), "expected integers, got string"),
    "labels": (table(changed(ROWS, 7, (ROWS[7][0], 3))), "row 7: expected a label from 0 to 2, got 3"),
    "negative": (table(changed(ROWS, 9, (ROWS[9][0], -1)), names=()), "row 9: expected a label from 0 to 2, got -1"),
    "empty label": (table(changed(ROWS, 1, (ROWS[1][0], None))), "got 1 without"),
    "sizes": (table(changed(ROWS, 0, (pictures(1, (20, 16))[0][0], 0))), "16x16|16x20"),
    "no image": (
        table([(b"nothing", 0) if n in (3, 4, 5) else row for n, row in enumerate(ROWS)]),
        "expected an image, got 7 bytes",
    ),
    "colour in a grey set": (table([pictures(1, grey=True)[0], *ROWS[1:]]), "expected a grey image.*mode RGB"),
    "a wild label": (table(changed(ROWS, 2, (ROWS[2][0], 2_000_000_000)), names=()), "fewer than rows, got 2000000000"),
    "16 bits": (table([(deep(), y) for _, y in ROWS]), "expected 8 bits a channel, got an image of mode I;16"),
    "a class missing": (table([(c, 0 if y == 2 else y) for c, y in ROWS]), "each of 3 classes.*missing: 'line'"),
    "too few": (table(ROWS[:50]), r"ask for 110 rows \(train 60, heldout 20, attacker 30\), there are 50"),
    "none": (table([], kind=pa.int64()).slice(0, 0), "expected"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_data_is_refused_before_anything_runs(name, tmp_path):
    made, message = BAD[name]
    folder = stored(tmp_path / "set", names=CLASSES if made is None or made.schema.metadata else ())
    path = folder / "train-00000-of-00001.parquet"
    if made is None:
        path.write_bytes(path.read_bytes()[:-200])
    else:
        pq.write_table(made, path)
    text = {
        "name": "x",
        "tasks": [{"dataset": str(folder), "model": "resnet8", "parts": dataclasses.asdict(SIZES)}],
        "defenses": [{"name": "none"}],
        "attacks": [{"name": "none"}],
    }
    with pytest.raises(InputError, match=message) as caught:
        cells.make(suite.parse(text, "here", "here"))
    assert str(folder) in str(caught.value)


def test_one_class_is_no_task(tmp_path):
    pq.write_table(table([(c, 0) for c, _ in ROWS], names=()), tmp_path / "one.parquet")
    with pytest.raises(InputError, match="at least two classes, got 0"):
        data.info(str(tmp_path / "one.parquet"))


def test_a_broken_image_is_named_when_it_is_read(tmp_path):
    rows = changed(ROWS, 5, (ROWS[5][0][:-40], 2))
    (tmp_path / "set").mkdir()
    pq.write_table(table(rows), tmp_path / "set" / "train.parquet")
    sizes = dataclasses.replace(SIZES, train=50, test=20)
    with pytest.raises(InputError, match="row 5: expected a whole image"):
        data.whole(task_of(tmp_path / "set", sizes))


def test_names_and_paths_that_lead_nowhere(tmp_path):
    with pytest.raises(InputError, match="Did you mean 'cifar10'"):
        data.info("cifra10")
    with pytest.raises(InputError, match="OWNBENCH_DATA"):
        data.info(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="folder of images for each of at least two classes, got none"):
        data.info(str(tmp_path / "empty"))


def test_sizes_are_checked():
    text = {"name": "x", "defenses": [{"name": "none"}], "attacks": [{"name": "none"}]}
    for parts, message in (
        ({"train": 0}, "at least one input"),
        ({"labelled": 400}, "labelled <= attacker"),
        ({"trian": 1}, "Did you mean 'train'"),
    ):
        with pytest.raises(InputError, match=message):
            suite.parse({**text, "tasks": [{"dataset": "digits", "parts": parts}]}, "here", "here")
    with pytest.raises(InputError, match="'digits/vgg8' twice"):
        suite.parse(
            {**text, "tasks": [{"dataset": "digits"}, {"dataset": "digits", "parts": {"train": 700}}]}, "h", "h"
        )


# By torchvision


def idx(array):
    """The format of the MNIST files: 0, 0, type 8, dimensions, their sizes as big-endian 32 bits, bytes."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def test_fashion_mnist_by_torchvision_from_files_in_its_format(tmp_path, monkeypatch):
    chance = np.random.default_rng(0)
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    written = {}
    for split, name, count in (("train", "train", 200), ("test", "t10k", 50)):
        images = chance.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        (raw / f"{name}-images-idx3-ubyte").write_bytes(idx(images))
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(idx(labels))
        written[split] = {image.tobytes(): int(label) for image, label in zip(images, labels, strict=True)}
    monkeypatch.setenv("OWNBENCH_DATA", str(tmp_path))
    info = data.info("fashion-mnist")
    task = Task(info, info.model, info.recipe, Sizes(100, 40, 60, 50, 50))
    assert set(data.prepare(info, task.sizes)) == {"train", "heldout", "attacker", "test"}
    found = data.whole(task)
    for split, where in ((found.train, "train"), (found.attacker, "train"), (found.test, "test")):
        for pixels, label in zip(split.inputs.stored, split.y, strict=True):
            assert written[where][pixels.numpy().tobytes()] == label


@pytest.mark.parametrize(
    ("name", "below", "coarse"), [("cifar10", "cifar-10-batches-bin", 0), ("cifar100", "cifar-100-binary", 1)]
)
def test_cifar_in_its_binary_edition(tmp_path, monkeypatch, name, below, coarse):
    chance = np.random.default_rng(0)
    files = [f"data_batch_{n}.bin" for n in range(1, 6)] if coarse == 0 else ["train.bin"]
    (tmp_path / below).mkdir()
    written = {}
    for file in [*files, "test_batch.bin" if coarse == 0 else "test.bin"]:
        records = chance.integers(0, 256, (100, coarse + 1 + 3072), dtype=np.uint8)
        records[:, coarse] = np.arange(100) % (100 if coarse else 10)
        (tmp_path / below / file).write_bytes(records.tobytes())
        written |= {record[coarse + 1 :].tobytes(): int(record[coarse]) for record in records}
    monkeypatch.setenv("OWNBENCH_DATA", str(tmp_path))
    source = vision.source(name)
    for split in ("train", "test"):
        rows = np.arange(len(source.labels(split)))
        pixels = source.stored(split, rows, (3, 32, 32))
        assert pixels.shape[1:] == (3, 32, 32)
        assert [written[one.tobytes()] for one in pixels] == source.labels(split).tolist()
    (tmp_path / below / files[0]).write_bytes(b"x" * 3000)
    with pytest.raises(InputError, match="expected records of"):
        vision.source(name)


def test_no_pickle_is_loaded_for_cifar(monkeypatch, tmp_path):
    import pickle

    monkeypatch.setattr(pickle, "load", lambda *a, **k: pytest.fail("pickle.load was called"))
    test_cifar_in_its_binary_edition(tmp_path, monkeypatch, "cifar10", "cifar-10-batches-bin", 0)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10", "cifar100"])
def test_an_unreachable_download_says_where_and_what_else(tmp_path, monkeypatch, name):
    import urllib.error
    import urllib.request

    def unreachable(*args, **kwargs):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    monkeypatch.setenv("OWNBENCH_DATA", str(tmp_path))
    with pytest.raises(InputError) as caught:
        vision.source(name)
    for word in (name, str(tmp_path), "Parquet", "OWNBENCH_DATA"):
        assert word in str(caught.value)


def test_a_torchvision_that_does_not_import_is_a_clear_error(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    monkeypatch.setenv("OWNBENCH_DATA", str(tmp_path))
    with pytest.raises(InputError, match="torchvision"):
        vision.source("mnist")


def test_the_constants_of_the_named_sets_hold_for_the_real_ones(monkeypatch):
    import os

    if "OWNBENCH_DATA" not in os.environ:
        pytest.skip("OWNBENCH_DATA is not set")
    for name in ("mnist", "cifar10"):
        info = data.info(name)
        task = Task(info, info.model, info.recipe, Sizes(4000, 500, 500, 200, 500))
        x = data.load(task, ("train",))["train"].x
        assert x.shape[1:] == info.shape
        assert x.mean((0, 2, 3)).abs().max() < 0.03
        assert (x.std((0, 2, 3)) - 1).abs().max() < 0.03


def test_images_of_a_named_set_must_be_as_the_task_says(tmp_path, monkeypatch):
    """A copy of MNIST in colour: refused, and not given to nets that take one channel."""
    monkeypatch.setenv("OWNBENCH_DATA", str(tmp_path))
    rows = [(encoded(np.zeros((28, 28, 3), dtype=np.uint8)), n % 10) for n in range(200)]
    (tmp_path / "mnist").mkdir()
    pq.write_table(table(rows, names=[str(n) for n in range(10)]), tmp_path / "mnist" / "train.parquet")
    with pytest.raises(InputError, match="expected a grey image"):
        data.prepare(data.info("mnist"), Sizes(60, 30, 60, 60, 40))


def test_a_plan_of_data_that_is_not_here_downloads_nothing(tmp_path, monkeypatch):
    from bench.commands import preview
    from bench.planning.options import Options

    monkeypatch.setenv("OWNBENCH_DATA", str(tmp_path))
    with pytest.raises(InputError, match="would download it to"):
        preview.text(Options("mnist"))
    assert not list(tmp_path.iterdir())


def test_all_infos_are_whole():
    for name in data.names():
        info = data.info(name)
        assert len(info.mean) == len(info.std) == info.shape[0]
        assert len(info.second) == info.classes
        assert info.sizes.train > info.sizes.attacker >= info.sizes.labelled
        assert Task(info, info.model, info.recipe).skeleton is not None
