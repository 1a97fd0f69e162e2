"""`ownbench claim`, `verify` and `resolve` on files, as owner and judge use them: each case a verdict or an error."""

import dataclasses
import io
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from rich.console import Console
from safetensors.torch import save_file

import models
from bench import claims
from bench.bundle import Bundle
from bench.commands.cli import main
from bench.commands.run import Options, run
from bench.derivation import derived_stream
from bench.stream import Stream
from bench.trainer import OwnerTrainer
from defenses.uchida import Uchida, mean_filter

PAGE = (Path(__file__).parent.parent / "docs" / "claims.md").read_text()
SEED = bytes(range(32))
SCHEME = Uchida(strength=1.0)
SUITE = """
name = "claimed"
seeds = [3]
[[tasks]]
dataset = "digits"
recipe = { epochs = 1 }
[[defenses]]
name = "uchida"
strength = 1.0
[[attacks]]
name = "magnitude-prune"
fractions = [0.2, 0.4]
[[attacks]]
name = "scratch"
epochs = 1
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A run folder with one protected model."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "suite.toml").write_text(SUITE)
    options = Options(str(folder / "suite.toml"), out=folder / "out", device="cpu", local=True)
    assert run(options, Console(file=io.StringIO())) == 0
    return folder / "out"


@pytest.fixture(scope="module")
def alice(ran, tmp_path_factory):
    """The claim of a run's product."""
    to = tmp_path_factory.mktemp("alice") / "claim"
    done = claim(ran, to)
    assert done.exit_code == 0, done.output
    return to


@pytest.fixture(scope="module")
def bob(task, parts, tmp_path_factory):
    """The claim of an owner who protects a model himself, by a derived key."""
    short = dataclasses.replace(task, recipe=dataclasses.replace(task.recipe, epochs=1))
    trainer = OwnerTrainer(short, parts.train, parts.heldout, Stream(("bob",)))
    model, key, _ = SCHEME.protect(trainer, SCHEME.draw(short, derived_stream(SEED, "Bob", SCHEME)))
    to = tmp_path_factory.mktemp("bob")
    claims.write(claims.commit(model, key, SCHEME, short, "Bob", seed=SEED), model, to)
    return to


def claim(ran, to, defense="uchida[strength=1]", seed=3, owner="Alice"):
    options = ["--defense", defense, "--seed", str(seed), "--owner", owner, "--to", str(to)]
    return CliRunner().invoke(main, ["claim", str(ran), *options])


def verify(model, key, *options):
    paths = [path if path.suffix else path / f"{name}.safetensors" for path, name in ((model, "model"), (key, "key"))]
    return CliRunner().invoke(main, ["verify", *map(str, paths), *map(str, options)])


def commitment(of):
    return "--commitment", of / "commitment.json"


def words(done):
    return " ".join(done.output.split())


def refused(done, *told):
    assert done.exit_code == 2, done.output
    assert done.output.startswith("ownbench: ") and "Traceback" not in done.output
    for text in told:
        assert text in words(done)


def model_of(folder):
    return claims.read_model(folder / "model.safetensors", {})


def saved(model, path):
    claims.save_model(model, path)
    return path


def marked(model, key, margin=3.0):
    """The model with the message of a uchida key written in by the least change of the mean filter."""
    carrier = models.layer(model, key.text("layer"))
    wanted = margin * (2.0 * key.tensor("message") - 1)
    lacking = wanted - key.tensor("projection") @ mean_filter(carrier)
    change = torch.linalg.pinv(key.tensor("projection")) @ lacking
    with torch.no_grad():
        carrier.weight += change.view_as(carrier.weight[0])
    return model


def opening(folder):
    return claims.read_opening(folder / "key.safetensors")


def dispute(folder, model, key, scheme, task, owner, seed=None):
    claims.write(claims.commit(model, key, scheme, task, owner, seed=seed), model, folder)
    return folder


# Claiming


def test_claim_writes_three_files_and_says_what_is_secret(ran, tmp_path):
    done = claim(ran, tmp_path / "mine")
    assert done.exit_code == 0, done.output
    assert {path.name for path in (tmp_path / "mine").iterdir()} == {
        "model.safetensors",
        "key.safetensors",
        "commitment.json",
    }
    told = words(done)
    assert "keep it secret" in told and "publish it now" in told and "p-value is 10^-19.3" in told
    assert "follows from the seed 3 of a benchmark" in told
    assert json.loads((tmp_path / "mine" / "commitment.json").read_text())["digest"] in told
    refused(claim(ran, tmp_path / "mine"), "without a claim")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"defense": "uchido"}, "--defense: unknown defense 'uchido'"),
        ({"seed": 4}, "--seed: unknown seed '4'"),
        ({"owner": " "}, "expected a name"),
    ],
)
def test_claim_says_what_the_run_has_not(ran, tmp_path, wrong, told):
    refused(claim(ran, tmp_path / "mine", **wrong), told)


def test_claim_of_a_folder_without_a_run_or_a_product_is_bad_input(ran, tmp_path):
    refused(claim(tmp_path, tmp_path / "mine"), "expected a run folder")
    shutil.copytree(ran, tmp_path / "run")
    for path in (tmp_path / "run" / "artifacts").iterdir():
        path.unlink()
    refused(claim(tmp_path / "run", tmp_path / "mine"), "was not kept", "keep =")


# Verifying


@pytest.mark.parametrize("who", ["alice", "bob"])
def test_the_right_key_holds(who, request):
    folder = request.getfixturevalue(who)
    done = verify(folder, folder, *commitment(folder))
    assert done.exit_code == 0, done.output
    assert done.output.startswith(f"THE CLAIM HOLDS: {who.title()}'s claim by uchida[strength=1], p = 10^-19.3")
    assert "is the model that was committed to, bit for bit" in words(done)
    assert "opens the commitment" in words(done)
    assert ("it was not chosen" in words(done)) == (who == "bob")
    assert max(map(len, done.output.splitlines())) <= 100


def test_without_a_commitment_the_verdict_says_what_is_not_shown(alice):
    done = verify(alice, alice)
    assert done.exit_code == 0
    assert "No commitment was given: nothing shows that the key was there before" in words(done)


def test_json_says_the_same(alice, bob):
    values = json.loads(verify(alice, alice, *commitment(alice), "--format", "json").output)
    assert values["holds"] and values["committed_model"] and values["opens_commitment"]
    assert values["log10_p"] == pytest.approx(-19.27, abs=0.01)
    assert values["derived"] is None and values["owner"] == "Alice" and values["alpha"] == 1e-6
    done = verify(alice, bob, "--format", "json")
    assert done.exit_code == 1 and json.loads(done.output)["holds"] is False


def test_the_wrong_key_does_not_hold(alice, bob):
    done = verify(alice, bob, *commitment(bob))
    assert done.exit_code == 1
    assert "THE CLAIM DOES NOT HOLD" in done.output and "is more than alpha" in words(done)


def test_a_stricter_judge_asks_for_more(alice):
    assert verify(alice, alice, "--alpha", "1e-30").exit_code == 1
    assert "at best: no claim at this alpha" in words(verify(alice, alice, "--alpha", "1e-30"))
    for alpha in ("0", "1", "-1", "nan"):
        refused(verify(alice, alice, "--alpha", alpha), "expected a rate in (0, 1)")


def test_a_tampered_model_is_judged_by_the_evidence_and_is_not_the_committed_one(alice, tmp_path):
    model = model_of(alice)
    with torch.no_grad():
        models.layer(model, "hidden").weight[0, :5] += 0.1
    done = verify(saved(model, tmp_path / "few.safetensors"), alice, *commitment(alice))
    assert done.exit_code == 0
    assert "is not the model that was committed to" in words(done)
    with torch.no_grad():
        models.layer(model, opening(alice).key.text("layer")).weight.normal_()
    done = verify(saved(model, tmp_path / "much.safetensors"), alice, *commitment(alice))
    assert done.exit_code == 1


def test_a_state_dict_alone_is_taken_for_the_claimed_architecture(alice, tmp_path):
    save_file(model_of(alice).state_dict(), tmp_path / "plain.safetensors")
    done = verify(tmp_path / "plain.safetensors", alice)
    assert done.exit_code == 0 and "bit for bit" in words(done)
    refused(verify(tmp_path / "plain.safetensors", alice, "--which", "x"), "one model without names")
    save_file(models.build("lenet5", 10, (1, 28, 28)).state_dict(), tmp_path / "other.safetensors")
    refused(verify(tmp_path / "other.safetensors", alice), "does not say its architecture", "tensor")


def test_another_architecture_is_a_verdict(alice, tmp_path):
    other = models.build("lenet5", 10, (1, 28, 28))
    done = verify(saved(other, tmp_path / "lenet.safetensors"), alice, *commitment(alice))
    assert done.exit_code == 1
    assert "the suspect cannot be read: no layer" in words(done)


def test_weights_that_are_no_numbers_are_a_verdict(alice, tmp_path):
    model = model_of(alice)
    with torch.no_grad():
        models.layer(model, "head").bias[0] = float("nan")
    done = verify(saved(model, tmp_path / "nan.safetensors"), alice)
    assert done.exit_code == 1 and "holds NaN or infinity" in words(done)


def test_a_file_with_several_models_asks_which(alice, tmp_path):
    other = models.build("lenet5", 10, (1, 28, 28))
    path = tmp_path / "two.safetensors"
    path.write_bytes(Bundle(models={"0": model_of(alice), "1": other}).to_bytes())
    refused(verify(path, alice), "holds the models 0, 1", "--which")
    refused(verify(path, alice, "--which", "2"), "unknown model '2'")
    assert verify(path, alice, "--which", "0").exit_code == 0
    assert verify(path, alice, "--which", "1").exit_code == 1


def test_products_of_a_run_are_files_to_be_judged(ran, alice):
    for path in (ran / "artifacts").glob("*.public.safetensors"):
        if "model" in Bundle.from_bytes(path.read_bytes()).models:
            assert verify(path, alice).exit_code in (0, 1)


def test_a_tampered_commitment_does_not_hold_or_is_refused(alice, bob, tmp_path):
    done = verify(alice, alice, *commitment(bob))
    assert done.exit_code == 1
    assert "the key file does not open this commitment" in words(done) and "one of them was changed" in words(done)
    text = (alice / "commitment.json").read_text()
    digest = json.loads(text)["digest"]
    path = tmp_path / "commitment.json"
    path.write_text(text.replace(digest, digest[::-1]))
    assert verify(alice, alice, "--commitment", path).exit_code == 1
    for broken in (text[:50], text.replace(digest, "x"), "", "[" * 100_000, text.replace("digest", "digests")):
        path.write_text(broken)
        refused(verify(alice, alice, "--commitment", path), "commitment.json: expected")
    refused(verify(alice, alice, "--commitment", alice / "key.safetensors"), "expected a commitment as JSON")


def test_a_changed_byte_of_the_key_file_is_noticed(alice, tmp_path):
    content = (alice / "key.safetensors").read_bytes()
    for place in (len(content) - 1, len(content) // 2):
        path = tmp_path / "key.safetensors"
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        refused(verify(alice, path), "damaged or changed")


def test_a_key_file_written_anew_to_fit_does_not_open_the_commitment(alice, bob, tmp_path):
    forged = opening(bob)
    carrier = models.layer(model_of(alice), forged.key.text("layer"))
    message = (forged.key.tensor("projection") @ mean_filter(carrier) >= 0).long()
    key = forged.key.redraw(dataclasses.replace(forged.key, drawn={"message": message}), ("message",))
    path = tmp_path / "key.safetensors"
    path.write_bytes(dataclasses.replace(forged, key=key).to_bytes())
    done = verify(alice, path, *commitment(bob))
    assert done.exit_code == 1 and "does not open this commitment" in words(done)
    done = verify(alice, path)
    assert done.exit_code == 1 and "the seed in the key file gives another key" in words(done)
    unseeded = dataclasses.replace(forged, key=key, statement={**forged.statement, "seed": None})
    path.write_bytes(unseeded.to_bytes())
    done = verify(alice, path)
    # Free of charge: what a verdict without a commitment is worth.
    assert done.exit_code == 0 and "keys that fit a model can be made from it" in words(done)


def test_a_key_with_more_bits_than_its_scheme_is_refused(alice, tmp_path):
    mine = opening(alice)
    drawn = {**mine.key.drawn, "message": torch.zeros(1000, dtype=torch.int64), "projection": torch.zeros(1000, 576)}
    path = tmp_path / "key.safetensors"
    path.write_bytes(dataclasses.replace(mine, key=dataclasses.replace(mine.key, drawn=drawn)).to_bytes())
    refused(verify(alice, path), "expected the drawn part 'message'", "[64]", "[1000]")


def test_a_key_that_breaks_its_scheme_is_refused(alice, tmp_path):
    mine = opening(alice)
    drawn = {**mine.key.drawn, "layer": "features"}
    path = tmp_path / "key.safetensors"
    statement = {**mine.statement, "scheme": {**mine.statement["scheme"], "name": "trigger-set"}}
    path.write_bytes(dataclasses.replace(mine, statement=statement).to_bytes())
    refused(verify(alice, path), "key file, scheme: expected 'trigger-set' from defenses.uchida:Uchida")
    path.write_bytes(dataclasses.replace(mine, key=dataclasses.replace(mine.key, drawn=drawn)).to_bytes())
    assert verify(alice, path).exit_code == 1
    for name, broken in (("seed", "xyz"), ("task", {}), ("scheme", "uchida"), ("data", None)):
        path.write_bytes(dataclasses.replace(mine, statement={**mine.statement, name: broken}).to_bytes())
        refused(verify(alice, path), "key file")


def test_a_scheme_that_breaks_is_an_error_in_words_unless_the_machine_is_to_blame(alice, monkeypatch):
    def broken(*arguments):
        raise ArithmeticError("odd key")

    monkeypatch.setattr(Uchida, "verify", broken)
    refused(verify(alice, alice), "cannot judge this suspect by this key: ArithmeticError: odd key")

    def short(*arguments):
        raise RuntimeError("can't allocate memory")

    monkeypatch.setattr(Uchida, "verify", short)
    assert isinstance(verify(alice, alice).exception, RuntimeError)


def test_files_that_are_no_models_are_refused(alice, tmp_path):
    refused(verify(alice / "key.safetensors", alice), "without any")
    refused(verify(alice / "commitment.json", alice), "expected a whole safetensors file")
    refused(verify(tmp_path / "none.safetensors", alice), "expected a file that can be read")
    (tmp_path / "folder.d").mkdir()
    refused(verify(tmp_path / "folder.d", alice), "expected a file that can be read")
    refused(verify(alice, alice / "model.safetensors"), "expected a key file")
    refused(verify(alice, alice / "commitment.json"), "expected a whole safetensors file")
    refused(verify(alice, tmp_path / "none.safetensors"), "expected a file that can be read")


@pytest.mark.parametrize("share", [0.0, 1e-6, 1e-3, 0.5, 0.999999])
def test_a_truncated_file_is_refused(alice, tmp_path, share):
    for name in ("model", "key"):
        content = (alice / f"{name}.safetensors").read_bytes()
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(content[: int(share * len(content))])
        arguments = (path, alice) if name == "model" else (alice, path)
        refused(verify(*arguments), "expected a whole safetensors file")


class Bomb:
    """Pickled, it would import a module when it is read."""

    def __reduce__(self):
        return __import__, ("this",)


def test_a_pickle_is_refused_unread(alice, tmp_path):
    sys.modules.pop("this", None)
    for old in (True, False):
        path = tmp_path / f"model-{old}.pt"
        torch.save({"weight": Bomb()}, path, _use_new_zipfile_serialization=not old)
        refused(verify(path, alice), "is a pickle, which is refused")
        refused(verify(alice, path), "is a pickle, which is refused")
    assert "this" not in sys.modules


def test_a_description_that_promises_more_than_the_file_holds_takes_no_memory(alice, tmp_path):
    content = (alice / "model.safetensors").read_bytes()
    bundle = Bundle.from_bytes(content)
    small = models.describe(bundle.models["model"])
    save = json.dumps(
        {"architectures": {"model": {**small, "layers": {"hidden": LARGE}}}, "values": {}}, sort_keys=True
    )
    path = tmp_path / "large.safetensors"
    state = {f"model/model/{name}": tensor for name, tensor in bundle.models["model"].state_dict().items()}
    save_file(state, path, metadata={"ownbench-bundle-1": save})
    refused(verify(path, alice), "'hidden.weight' has shape [128, 256], not [1000000000, 1000000]")
    for broken in ("", "{}", "[]", "[" * 100_000, json.dumps({"architectures": {"model": 5}, "values": {}})):
        save_file(state, path, metadata={"ownbench-bundle-1": broken})
        refused(verify(path, alice), "large.safetensors: expected")


LARGE = {"type": "Linear", "in_features": 10**6, "out_features": 10**9, "bias": True}


def test_data_by_name_is_not_found_by_a_path(alice):
    refused(verify(alice, alice, "--data", "/nowhere"), "--data: 'digits' comes by name", "OWNBENCH_DATA")


def test_the_page_on_claims_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    short = code.replace("info.recipe)", "dataclasses.replace(info.recipe, epochs=2))").replace(
        "Uchida(", "Uchida(strength=1.0, "
    )
    assert short.count("epochs=2") == 1 and short.count("strength") == 1
    # What the page shows, and no plugin or file of somebody else.
    exec(f"import dataclasses\n{short}", {})
    done = verify(tmp_path / "my-claim", tmp_path / "my-claim", *commitment(tmp_path / "my-claim"))
    assert done.exit_code == 0, done.output
    assert "it was not chosen" in words(done)


# Disputes


def test_who_marks_a_stolen_model_loses_and_against_a_derived_key_even_with_the_earlier_time(
    alice, bob, task, tmp_path
):
    key = SCHEME.draw(task, Stream(("thief",)))
    stolen = dispute(tmp_path / "thief", marked(model_of(alice), key), key, SCHEME, task, "Thief")
    assert verify(stolen, alice).exit_code == 0 and verify(alice, stolen).exit_code == 1
    done = CliRunner().invoke(main, ["resolve", str(stolen), str(alice), "--time-a", "2000-01-01T00:00:00+00:00"])
    assert done.exit_code == 1
    assert "may have been fitted to both models" in words(done)
    done = CliRunner().invoke(main, ["resolve", str(stolen), str(alice), "--format", "json"])
    ruling = json.loads(done.output)
    assert done.exit_code == 0
    assert (ruling["winner"], ruling["by"]) == ("B", "both models")
    assert ruling["pairs"] == {"a_in_a": True, "a_in_b": False, "b_in_a": True, "b_in_b": True}
    stolen = dispute(tmp_path / "again", marked(model_of(bob), key), key, SCHEME, task, "Thief")
    done = CliRunner().invoke(main, ["resolve", str(stolen), str(bob), "--time-a", "2000-01-01T00:00:00+00:00"])
    assert done.exit_code == 0 and "B (Bob) WINS: the key of B verifies in both models" in words(done)


def test_a_key_fitted_to_both_models_after_the_fact_wins_nothing_against_an_earlier_commitment(alice, task, tmp_path):
    # Why being in both models is not enough: the thief's own model lacks the owner's mark, and the thief's key, made
    # from both models, is in both.
    thief = task.new_model(Stream(("thief's own",)))
    drawn, layer = SCHEME.draw(task, Stream(("thief",))), opening(alice).key.text("layer")
    seen = torch.stack([mean_filter(models.layer(model, layer)).detach() for model in (model_of(alice), thief)], 1)
    signs = (2.0 * drawn.tensor("message") - 1)[:, None].expand(-1, 2)
    rows = drawn.tensor("projection")
    rows = rows + (signs - rows @ seen) @ torch.linalg.pinv(seen)
    key = dataclasses.replace(drawn, drawn={**drawn.drawn, "projection": rows})
    forged = dispute(tmp_path / "thief", thief, key, SCHEME, task, "Thief")
    done = CliRunner().invoke(main, ["resolve", str(forged), str(alice)])
    assert done.exit_code == 1, done.output
    told = words(done)
    assert "UNDECIDED: the key of A verifies in both models, the other in its own alone; but A committed later" in told
    assert "The key of B (Alice) verifies in its own model and does not verify in that of A" in told


def test_copies_of_one_model_go_to_whom_committed_first(alice, task, tmp_path):
    model = model_of(alice)
    drawn = SCHEME.draw(task, Stream(("late",)))
    read = drawn.tensor("projection") @ mean_filter(models.layer(model, drawn.text("layer")))
    key = dataclasses.replace(drawn, drawn={**drawn.drawn, "message": (read >= 0).long()})
    late = dispute(tmp_path / "late", model, key, SCHEME, task, "Late")
    done = CliRunner().invoke(main, ["resolve", str(alice), str(late)])
    assert done.exit_code == 0
    assert "A (Alice) WINS: each key verifies in both models, and A committed first." in done.output
    refused(
        CliRunner().invoke(main, ["resolve", str(alice), str(late), "--time-b", "yesterday"]),
        "--time-b: expected a time",
    )


def test_two_models_that_have_nothing_to_do_with_each_other_are_no_dispute(alice, bob):
    done = CliRunner().invoke(main, ["resolve", str(alice), str(bob)])
    assert done.exit_code == 1
    assert "nothing shows that one model stems from the other" in words(done)


def test_a_side_whose_files_contradict_its_commitment_has_no_claim(alice, bob, task, tmp_path):
    for folder in (alice, bob):
        shutil.copytree(folder, tmp_path / folder.parent.name / "x")
    key = SCHEME.draw(task, Stream(("thief",)))
    stolen = dispute(tmp_path / "thief", marked(model_of(alice), key), key, SCHEME, task, "Thief")
    shutil.copy(alice / "commitment.json", stolen / "commitment.json")
    done = CliRunner().invoke(main, ["resolve", str(stolen), str(bob)])
    assert done.exit_code == 0 and "B (Bob) WINS: the claim of B is the only valid one" in words(done)
    assert "contradicts its commitment" in words(done)
    (stolen / "commitment.json").unlink()
    refused(CliRunner().invoke(main, ["resolve", str(stolen), str(bob)]), "commitment.json: expected a file")
