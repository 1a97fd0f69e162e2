"""Surrogates of any shape: stored as bytes, loaded in another process, and judged there as here."""

import json
import subprocess
import sys
from pathlib import Path

import nets
import numpy as np
import pytest
import torch

import models
from attacks.channel_prune import ChannelPrune
from attacks.fold_normalization import FoldNormalization
from attacks.reparametrise import Reparametrise
from attacks.widening import DeadChannels, Net2Wider, PadWidth
from bench import data
from bench.bundle import Bundle, key_to_bundle
from bench.canonical import reference_of
from bench.stream import Stream
from bench.suspect import Suspect, Target
from bench.task import Task
from defenses.channel_rate import ChannelRate
from defenses.constant_weight_code import ConstantWeightCode
from defenses.uchida import Uchida
from models.pruning import with_widths

INFO = data.info("digits")
TASK = Task(INFO, "vgg8", INFO.recipe)
SCHEMES = [ChannelRate(canonical=True), Uchida(canonical=True), ConstantWeightCode(canonical=True)]
ATTACKS = [
    [],
    [PadWidth(hide="pairs")],
    [FoldNormalization()],
    [DeadChannels(), Reparametrise()],
    [Net2Wider(), FoldNormalization(), Reparametrise()],
    [ChannelPrune(fractions=(0.3,), retrain_epochs=0), DeadChannels(hide="pairs")],
]
ELSEWHERE = """
import json, sys
from pathlib import Path
import torch
from bench.bundle import Bundle, bundle_to_key
from bench.suspect import Suspect
import test_shapes_of_surrogates as here

torch.set_num_threads(1)
folder, said = Path(sys.argv[1]), []
keys = [bundle_to_key(Bundle.from_bytes(path.read_bytes())) for path in sorted(folder.glob("key-*"))]
for path in sorted(folder.glob("surrogate-*")):
    model = Bundle.from_bytes(path.read_bytes()).models["model"]
    said.append([here.judged(model, scheme, key) for scheme, key in zip(here.SCHEMES, keys)])
print(json.dumps(said))
"""


class Side:
    """What attacks without data and verifying need of a trainer."""

    task = TASK
    stream = Stream.root(3)
    device = torch.device("cpu")


def judged(model, scheme, key):
    found = scheme.verify(Suspect.of(model), key, Side)
    return [found.log10_p, found.statistic, sorted(found.figures.items())]


def attacked(model, attacks):
    for attack in attacks:
        (_, model), *_ = attack.run(Target(model, "white-box"), Side)
    return model


@pytest.fixture(scope="module")
def keys():
    return [scheme.draw(TASK, Stream.root(7).child(scheme.name)) for scheme in SCHEMES]


@pytest.fixture(scope="module")
def published(keys):
    plain = nets.lived_in(models.build("vgg8", 10, TASK.shape))
    wanted = SCHEMES[0].wanted(keys[0], TASK, plain)
    return with_widths(plain, wanted, "filter", np.random.default_rng(0))


def test_they_are_judged_in_another_process_as_in_this_one(keys, published, tmp_path):
    # Of the marks in weights the key is that of another owner: what is compared is the reading.
    owned = [keys[0], *(key.complete(**reference_of(published)) for key in keys[1:])]
    for number, key in enumerate(owned):
        (tmp_path / f"key-{number}").write_bytes(key_to_bundle(key).to_bytes())
    surrogates = [attacked(published, attacks) for attacks in ATTACKS]
    for number, model in enumerate(surrogates):
        (tmp_path / f"surrogate-{number}").write_bytes(Bundle(models={"model": model}).to_bytes())
    here = Path(__file__).parent
    path = [str(here.parent), str(here)]
    command = [sys.executable, "-c", f"import sys; sys.path[:0] = {path}\n{ELSEWHERE}", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    found = [[judged(model, scheme, key) for scheme, key in zip(SCHEMES, owned, strict=True)] for model in surrogates]
    assert json.loads(done.stdout) == json.loads(json.dumps(found))
    claims = [one[0][0] <= -6 for one in found]
    assert claims == [True, True, True, True, True, False]
    raw = [dict(one[0][2])["log10_p.raw"] <= -6 for one in found]
    assert raw == [True, False, True, False, False, False]
