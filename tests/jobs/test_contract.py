"""A contract becomes what pipelines need; what makes no sense is refused with its key, wherever a model comes in."""

from datetime import timedelta

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from engines.model import Transform, load_package
from engines.zoo import PersistenceSpec, write_package
from jobs.cli import main
from jobs.contract import chain_text, model_needs
from jobs.models import describe_package
from pipelines.errors import ConfigError

CHAIN = [{"name": "clip", "minimum": 0}, {"name": "log1p"}, {"name": "standardise", "mean": 0.5, "std": 2}]
BAD = [{"name": "log1p"}, {"name": "clip", "minimum": 1}]


@pytest.fixture
def folder(tmp_path):
    return write_package(PersistenceSpec((-5.0, 0.0), (5.0,)), tmp_path / "model")


def change(folder, side, transform):
    """The package with another transform."""
    tree = yaml.safe_load((folder / "model.yaml").read_text())
    tree[side]["transform"] = transform
    (folder / "model.yaml").write_text(yaml.safe_dump(tree))
    return folder


def forget_missing(folder):
    """The package without a word on missing cells."""
    tree = yaml.safe_load((folder / "model.yaml").read_text())
    del tree["input"]["missing"]
    (folder / "model.yaml").write_text(yaml.safe_dump(tree))
    return folder


@pytest.mark.parametrize("side", ["input", "output"])
def test_a_chain_of_the_contract_is_what_the_model_sees(folder, side):
    needs = model_needs(load_package(change(folder, side, CHAIN)).contract)
    space, other = (needs.space, needs.output_space)[:: 1 if side == "input" else -1]
    values = np.array([0.0, 3.0])
    space.apply(values)
    np.testing.assert_allclose(values, (np.log1p([0, 3]) - 0.5) / 2)
    assert other.steps == ()
    assert needs.cadence == timedelta(minutes=5)


@pytest.mark.parametrize("side", ["input", "output"])
def test_a_bad_chain_is_refused_with_its_key(folder, side):
    contract = load_package(change(folder, side, BAD)).contract
    with pytest.raises(ConfigError, match=f"{side}.transform of the model persistence 1.0: in log1p -> clip: log1p"):
        model_needs(contract)


@pytest.mark.parametrize(
    ("transform", "reason"),
    [
        ({"name": "log10", "threshold": 0.1, "zero": -2.0}, "-2"),
        ({"name": "standardise", "mean": 0.5, "std": 2}, r"-0\.25"),
        ({"name": "log", "offset": 1e-9}, r"-20\.72327"),
        ({"name": "log1p"}, None),
        ({"name": "standardise", "mean": 0, "std": 60}, None),
    ],
)
def test_missing_must_be_said_where_0_does_not_mean_zero(folder, transform, reason):
    change(folder, "input", transform)
    model_needs(load_package(folder).contract)
    silent = forget_missing(folder)
    if reason is None:
        model_needs(load_package(silent).contract)
    else:
        with pytest.raises(ConfigError, match=f"0 is not 0 mm h-1 after .*: {reason} for 0 mm h-1, or"):
            model_needs(load_package(silent).contract)


@pytest.mark.parametrize("command", [["models"], ["model", "add"]])
def test_a_bad_chain_is_refused_before_a_model_is_used(folder, command, tmp_path):
    registry = ["--registry", str(tmp_path / "registry")] if "add" in command else []
    result = CliRunner().invoke(main, [*command, str(change(folder, "output", BAD)), *registry])
    assert result.exit_code != 0
    assert "output.transform of the model" in " ".join(result.output.split())
    assert not (tmp_path / "registry").exists()


def test_a_package_is_shown_with_its_chains(folder):
    rows = describe_package(str(change(folder, "input", CHAIN)))
    assert rows["input transform"] == "clip minimum=0 -> log1p -> standardise mean=0.5 std=2"
    assert rows["output transform"] == "identity"


def test_a_single_step_is_a_chain_of_one():
    assert chain_text((Transform(name="log1p"),)) == "log1p"
