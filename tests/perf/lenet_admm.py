"""LeNet-5 on MNIST compressed by ADMM at the published rates, beside one-shot pruning and others' implementations.

    OWNBENCH_DATA=FOLDER python -m tests.perf.lenet_admm --to results/compression-lenet
    OWNBENCH_DATA=FOLDER python -m tests.perf.lenet_admm --bzantium CHECKOUT --kaiqzhan CHECKOUT --to FOLDER

All 60,000 training images, no augmentation, Adam. Every row starts from the same dense net of ours. The rates of the
row at 71.2x, the first rho and the weight decay are those of Zhang et al. 2018 (arXiv 1804.03294), who take 30
iterations of 5,000 steps at that rho; here 20 of 468 steps, between which rho grows. It has to start so low: the zeros
go on moving from weight to weight through the first half of the iterations. Of 167x (Ren et al. 2019, arXiv 1812.11677)
the rates by layer are not known here, so the attack divides one share of all weights itself. Others' functions
(`third_party_admm`) get our net, our images and as many epochs; penalty, optimiser and batches of 64 are theirs.

Stored bits are those of `models.compression`: with each layer's scale or codebook, biases left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import models
from attacks.admm.compression import zeros_of
from attacks.admm.core import project
from attacks.admm_prune import AdmmPrune
from attacks.admm_quantize import AdmmPruneQuantize
from bench import data
from bench.hooks import Hooks
from bench.recipe import Recipe
from bench.split import Split
from bench.stream import Stream
from bench.suspect import predict
from bench.task import Task
from bench.trainer import AttackerTrainer
from models.compression import stored_bits
from tests.perf import third_party_admm

RECIPE = Recipe(epochs=10, batch_size=128, optimizer="adam", learning_rate=2e-3, weight_decay=5e-5)
RATES = (0.8, 0.92, 0.991, 0.93)
DENSE = 430_500
# Levels on either side of zero: as released for 71x and its like, and 3 bits for convolutions, 2 for the others.
RELEASED, FEWEST = (63, 31, 7, 31), (4, 4, 2, 2)


class Bench:
    """The data, the dense net and the rows so far."""

    def __init__(self, scale: float, seed: int, images: int) -> None:
        info = data.info("mnist")
        self.scale, self.seed, self.rows = scale, seed, []
        self.task = Task(info, "lenet5", dataclasses.replace(RECIPE, epochs=self.epochs(RECIPE.epochs)))
        parts = data.whole(self.task)
        three = (parts.train, parts.heldout, parts.attacker)
        inputs = dataclasses.replace(three[0].inputs, stored=torch.cat([one.inputs.stored for one in three]))
        train = Split(inputs, torch.cat([one.y for one in three]))
        self.train, self.test = train.take(images), parts.test
        trainer, start = self.trainer(), time.perf_counter()
        self.dense = trainer.fit(trainer.new_model(), self.train).eval()
        self.seconds_dense, self.accuracy_dense = time.perf_counter() - start, self.accuracy(self.dense)
        print(f"dense: {self.accuracy_dense:.4f} in {self.seconds_dense:.0f} s", flush=True)

    def epochs(self, whole: int) -> int:
        """So many epochs, scaled."""
        return max(1, round(self.scale * whole))

    def trainer(self) -> AttackerTrainer:
        """Another one has the same order of data."""
        return AttackerTrainer(self.task, self.train.inputs, self.train, Stream.root(self.seed).child("lenet-admm"))

    def accuracy(self, model: torch.nn.Module) -> float:
        """On the test split."""
        return float((predict(model, self.test.inputs).argmax(1).cpu() == self.test.y).float().mean())

    def add(self, implementation: str, setting: str, model: torch.nn.Module, **found) -> None:
        """Measure a net and note it."""
        weights = models.weights_of(model)
        left = {name: int((weight != 0).sum()) for name, weight in weights.items()}
        kept = sum(left.values())
        row = {
            "implementation": implementation,
            "setting": setting,
            "rates": json.dumps([round(1 - left[name] / weights[name].numel(), 4) for name in weights]),
            "weights_kept": kept,
            "ratio": DENSE / kept,
            "accuracy_dense": self.accuracy_dense,
            "accuracy_before_retraining": found["before"],
            "residuals": json.dumps({name: round(value, 4) for name, value in found.get("residuals", {}).items()}),
            "accuracy": self.accuracy(model),
            "levels": json.dumps(found.get("levels")),
            "seconds": found["seconds"],
            "epochs": found["epochs"],
            "images": len(self.train),
            "seed": self.seed,
            "threads": torch.get_num_threads(),
            "versions": json.dumps(versions() | found.get("versions", {})),
        }
        if found.get("levels"):
            values, indexed = map(sum, zip(*(stored_bits(weight) for weight in weights.values()), strict=True))
            row |= {"bits_values": values, "bits_with_indices": indexed}
            row |= {"ratio_values": 32 * DENSE / values, "ratio_with_indices": 32 * DENSE / indexed}
        self.rows.append(row)
        print(json.dumps({name: value for name, value in row.items() if name != "versions"}), flush=True)


def versions() -> dict[str, str]:
    """Of what computes."""
    return {"torch": torch.__version__, "numpy": np.__version__, "python": platform.python_version()}


def run(bench: Bench, attack, phases, model, setting: str, **told) -> None:
    """Take the phases of an attack on a model, and note what is left; seconds are those of the phases alone."""
    before, residuals, epochs, seconds = 0.0, {}, 0, 0.0
    while True:
        start = time.perf_counter()
        phase = next(phases, None)
        seconds += time.perf_counter() - start
        if phase is None:
            break
        epochs += phase.epochs
        if phase.course:
            residuals, before = phase.course.residuals[-1], bench.accuracy(model.eval())
    bench.add(f"ours ({attack.name})", setting, model.eval(), before=before, residuals=residuals, seconds=seconds,
              epochs=epochs, **told)  # fmt: skip


def pruned(bench: Bench, attack: AdmmPrune, setting: str) -> torch.nn.Module:
    """Prune a copy of the dense net."""
    model = models.rebuild(models.describe(bench.dense), bench.dense.state_dict())
    ((_, projections),) = attack.plans(model, bench.task)
    run(bench, attack, attack.pruned(model, projections, bench.trainer()), model, setting)
    return model


def one_shot(bench: Bench, attack: AdmmPrune, setting: str) -> None:
    """Cut to as many weights at once, and spend all of the epochs on training with the zeros held."""
    model = models.rebuild(models.describe(bench.dense), bench.dense.state_dict())
    ((_, projections),) = attack.plans(model, bench.task)
    epochs, start = attack.iterations * attack.epochs + attack.retrain_epochs, time.perf_counter()
    project(model, projections)
    before = bench.accuracy(model.eval())
    attack.minimiser(bench.trainer(), epochs, zeros_of(model, projections))(model, Hooks())
    seconds = time.perf_counter() - start
    bench.add("one-shot magnitude", setting, model.eval(), before=before, seconds=seconds, epochs=epochs)


def quantized(bench: Bench, model: torch.nn.Module, levels: tuple[int, ...], setting: str) -> None:
    """Quantize what pruning has left, as `admm-prune-quantize` goes on; from the rho of Ren et al. 2019 on."""
    attack = AdmmPruneQuantize(
        levels=levels, iterations=bench.epochs(5), epochs=1, learning_rate=5e-4, rho=7e-3, growth=1.3, snap_epochs=1
    )
    counts = attack.counts(model, None)
    run(bench, attack, attack.quantized(model, counts, bench.trainer()), model, setting, levels=levels)


def main() -> None:
    """Run all, print each row, write them together."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--to", type=Path, default=Path("results/compression-lenet"))
    parser.add_argument("--epochs-scale", type=float, default=1.0, help="of all epochs but those of snapping")
    parser.add_argument("--images", type=int, default=60_000, help="the first ones are trained on")
    parser.add_argument("--rho", type=float, default=1e-4, help="of the first iteration of pruning")
    parser.add_argument("--growth", type=float, default=1.3, help="of rho from one iteration to the next")
    parser.add_argument("--seed", type=int, default=0, help="of everything random")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bzantium", type=Path, help="a checkout of bzantium/pytorch-admm-pruning")
    parser.add_argument("--kaiqzhan", type=Path, help="a checkout of kaiqzhan/admm-pruning at 4f6e8b7")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    bench = Bench(options.epochs_scale, options.seed, options.images)
    common = {"epochs": 1, "learning_rate": 2e-3, "retrain_epochs": bench.epochs(10)}
    common |= {"rho": options.rho, "growth": options.growth}
    published = AdmmPrune(rates=RATES, iterations=bench.epochs(20), **common)
    sparser = AdmmPrune(fractions=(1 - 1 / 167,), iterations=bench.epochs(25), **common)
    one_shot(bench, published, "71.2x")
    first = pruned(bench, published, "71.2x")
    for drive, folder in ((third_party_admm.bzantium, options.bzantium), (third_party_admm.kaiqzhan, options.kaiqzhan)):
        if folder:
            drive(bench, folder, RATES, published.iterations, published.retrain_epochs)
    second = pruned(bench, sparser, "167x")
    quantized(bench, first, RELEASED, "71.2x, quantized")
    quantized(bench, second, FEWEST, "167x, quantized")
    options.to.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(bench.rows).to_parquet(options.to / "lenet-admm.parquet", index=False)
    shown = ["implementation", "setting", "weights_kept", "ratio", "accuracy_before_retraining", "accuracy", "seconds"]
    print(pd.DataFrame(bench.rows)[shown].to_string(index=False))


if __name__ == "__main__":
    main()
