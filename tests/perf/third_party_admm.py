"""Drives checkouts of other implementations, whose code stays where the user has it.

`bzantium` is github.com/bzantium/pytorch-admm-pruning, `kaiqzhan` the port to PyTorch by the method's first author, at
4f6e8b7 of github.com/kaiqzhan/admm-pruning, the last commit that prunes single weights at the published rates.
"""

from __future__ import annotations

import argparse
import collections.abc
import contextlib
import importlib
import importlib.util
import io
import subprocess
import sys
import time
import types
from pathlib import Path

import torch

import models

# Its modules, in its own names, and our layers in the order of its weights.
MODULES = ("main", "model", "optimizer", "utils")
LAYERS = {"conv1": "conv1", "conv2": "conv2", "hidden": "fc1", "head": "fc2"}


class Batches:
    """Shuffled batches of a split, as its loops take them from a DataLoader; what fills no batch is left out."""

    def __init__(self, split, size: int, seed: int) -> None:
        self.split, self.size, self.dataset = split, size, split
        self.order = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self.split) // self.size

    def __iter__(self):
        rows = torch.randperm(len(self.split), generator=self.order)
        for start in range(0, len(rows) // self.size * self.size, self.size):
            chosen = rows[start : start + self.size]
            yield self.split.inputs.batch(chosen), self.split.y[chosen]


@contextlib.contextmanager
def imported(folder: Path):
    """Its `main` module; what it expects of older libraries stands in for the time being."""
    older = types.ModuleType("torch._six")
    older.container_abcs = collections.abc
    standing = {"torch._six": older}
    if importlib.util.find_spec("tqdm") is None:
        bar = types.ModuleType("tqdm")
        bar.tqdm = lambda batches: batches
        standing["tqdm"] = bar
    saved = {name: sys.modules.pop(name, None) for name in (*MODULES, *standing)}
    sys.modules.update(standing)
    sys.path.insert(0, str(folder))
    try:
        yield importlib.import_module("main")
    finally:
        sys.path.remove(str(folder))
        for name, module in saved.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module


def bzantium(bench, folder: Path, rates: tuple[float, ...], epochs: int, retrain_epochs: int) -> None:
    """Prune our dense net with its functions, one epoch an iteration as it does, and note what is left.

    Its own pretraining is left out; Adam at its default rate, 1e-3, batches of 64. It tests after each epoch, here on
    nothing but one batch, so that the seconds are those of training.
    """
    with imported(folder) as theirs:
        net = filled(theirs.LeNet(), bench.dense)
        args = argparse.Namespace(
            percent=list(rates), rho=1e-2, alpha=5e-4, l1=False, l2=False,
            num_pre_epochs=0, num_epochs=epochs, num_re_epochs=retrain_epochs,
        )  # fmt: skip
        residuals = {}

        def record(model, x, z):
            for name, one, other in zip(LAYERS, x, z, strict=True):
                residuals[name] = float((one - other).norm() / one.norm())

        theirs.print_convergence = record
        optimizer = theirs.PruneAdam(net.named_parameters(), lr=1e-3, eps=1e-8)
        batches, few = Batches(bench.train, 64, bench.seed), Batches(bench.test.take(64), 64, bench.seed)
        start = time.perf_counter()
        with silence():
            theirs.train(args, net, torch.device("cpu"), batches, few, optimizer)
            mask = theirs.apply_prune(net, torch.device("cpu"), args)
            before = bench.accuracy(net)
            theirs.retrain(args, net, mask, torch.device("cpu"), batches, few, optimizer)
        seconds = time.perf_counter() - start
    found = {"before": before, "residuals": residuals, "seconds": seconds, "epochs": epochs + retrain_epochs}
    note(bench, "bzantium/pytorch-admm-pruning", folder, net, **found)


def kaiqzhan(bench, folder: Path, rates: tuple[float, ...], iterations: int, retrain_epochs: int) -> None:
    """Prune our dense net with its functions, in the order of its `main`, and note what is left.

    One epoch an iteration instead of its five; its own rho, 1e-4 of the whole square, its Adam with amsgrad, batches of
    64. Its `main` hands its `train` the masks as a dict, over which that loops as over pairs (its next commit mends
    it): here it gets pairs.
    """
    theirs = _loaded(folder / "pytorch" / "main.py")
    net, device, quiet = filled(theirs.Net(), bench.dense), torch.device("cpu"), argparse.Namespace(log_interval=2**40)
    percent = dict(zip(LAYERS.values(), (round(100 * rate, 4) for rate in rates), strict=True))
    weights = {name: net.get_parameter(f"{name}.weight") for name in percent}
    batches, start = Batches(bench.train, 64, bench.seed), time.perf_counter()

    def adam():
        return torch.optim.Adam(net.parameters(), lr=1e-3, weight_decay=5e-5, amsgrad=True)

    with silence():
        aux = {name: (w, theirs.project(w, percent[name])[0], torch.zeros_like(w), percent[name])
               for name, w in weights.items()}  # fmt: skip
        optimizer = adam()
        for number in range(1, iterations + 1):
            theirs.train_admm(quiet, net, device, batches, optimizer, number, aux)
            theirs.update_aux(net, aux, number)
        residuals = {name: float((w - z).norm() / w.norm()) for name, (w, z, _, _) in aux.items()}
        masks = [(name, (w, theirs.project(w, percent[name])[1])) for name, w in weights.items()]
        with torch.no_grad():
            for _, (weight, gone) in masks:
                weight[gone] = 0
        before, optimizer = bench.accuracy(net), adam()
        for number in range(1, retrain_epochs + 1):
            theirs.train(quiet, net, device, batches, optimizer, number, masks)
    seconds = time.perf_counter() - start
    found = {"before": before, "residuals": residuals, "seconds": seconds, "epochs": iterations + retrain_epochs}
    note(bench, "kaiqzhan/admm-pruning", folder, net, **found)


@contextlib.contextmanager
def silence():
    """What they print for each batch and epoch is of no use here."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def filled(net, dense):
    """Their net with the weights of ours."""
    for ours, name in LAYERS.items():
        net.get_submodule(name).load_state_dict(models.layer(dense, ours).state_dict())
    return net


def note(bench, name: str, folder: Path, net, **found) -> None:
    """Measure their net as one of ours, under the name of its repository."""
    model = models.build("lenet5", 10, (1, 28, 28))
    for ours, theirs in LAYERS.items():
        models.layer(model, ours).load_state_dict(net.get_submodule(theirs).state_dict())
    bench.add(name, "71.2x", model.eval(), versions={"third_party": _commit(folder)}, **found)


def _loaded(file: Path) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("third_party_main", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _commit(folder: Path) -> str:
    found = subprocess.run(["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"
