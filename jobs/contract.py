"""What a model's contract means to those who know grids and units, but no models."""

import numpy as np

from engines.model import Contract, Transform
from pipelines.errors import ConfigError
from pipelines.model_space import ModelSpace, make_space
from pipelines.transform import ModelNeeds
from pipelines.units import Quantity


def model_needs(contract: Contract) -> ModelNeeds:
    """What a contract means for pipelines.

    Raises:
        ConfigError: a transform that makes no sense, or no number for missing where it cannot be 0; names the key and
            what was expected.
    """
    given, returned = contract.input, contract.output
    space = _space(contract, "input", given.transform, given.missing)
    _check_missing(contract, space)
    return ModelNeeds(
        name=contract.name,
        version=contract.version,
        frames=given.frames,
        cadence=given.cadence,
        quantity=Quantity(given.standard_name, given.units),
        space=space,
        leads=returned.leads,
        output_quantity=Quantity(returned.standard_name, returned.units),
        output_space=_space(contract, "output", returned.transform, missing_below=returned.missing_below),
        coverage=returned.coverage,
    )


def _check_missing(contract: Contract, space: ModelSpace) -> None:
    """Raises ConfigError if the contract does not say what missing cells are given as, and 0 would not mean zero."""
    if "missing" in contract.input.model_fields_set:
        return
    zero = np.zeros(1)
    space.apply(zero)
    if zero[0] != 0:
        raise ConfigError(
            f"the model {contract.name} {contract.version} does not say what missing cells are given as, and 0 is not "
            f"0 {contract.input.units} after its input.transform; write input.missing: {zero[0]:.7g} for 0 "
            f"{contract.input.units}, or another number in model space"
        )


def _space(
    contract: Contract,
    side: str,
    chain: tuple[Transform, ...],
    missing: float = 0.0,
    missing_below: float | None = None,
) -> ModelSpace:
    try:
        return make_space([step.model_dump() for step in chain], missing, missing_below)
    except ConfigError as error:
        raise ConfigError(f"{side}.transform of the model {contract.name} {contract.version}: {error}") from error


def chain_text(chain: tuple[Transform, ...]) -> str:
    """A chain of transforms on one line.

    >>> chain_text((Transform.model_validate({"name": "clip", "minimum": 0}), Transform(name="log1p")))
    'clip minimum=0 -> log1p'
    """
    return " -> ".join(" ".join([s.name, *(f"{key}={value}" for key, value in _numbers(s))]) for s in chain)


def _numbers(step: Transform) -> list[tuple[str, object]]:
    return [(key, value) for key, value in step.model_dump().items() if key != "name"]
