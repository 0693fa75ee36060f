"""From the spec of a model that squall writes to its package: `model.onnx` and `model.yaml`, always the same bytes."""

from datetime import timedelta
from pathlib import Path

import onnx
import yaml

from engines.model import Contract, ModelInput, ModelOutput, TileRule, Transform
from engines.zoo import advection, persistence, unet
from engines.zoo.advection import MISSING, MISSING_BELOW, AdvectionSpec
from engines.zoo.persistence import PersistenceSpec
from engines.zoo.unet import UnetSpec

Spec = AdvectionSpec | PersistenceSpec | UnetSpec

KINDS = {
    "advection": "moves the newest rain field along its own motion; the default, and hard to beat for an hour",
    "persistence": "the newest field for every lead time; the baseline",
    "unet": "a U-Net with random weights, for benchmarks of speed only",
}

_RAIN = {"standard_name": "lwe_precipitation_rate", "units": "mm h-1"}
_DRY = -2.0  # log10 of mm h-1 that stands for everything below the threshold
_LOG10 = (Transform.model_validate({"name": "log10", "threshold": 0.1, "offset": 0.0, "zero": _DRY}),)


def write_package(spec: Spec, folder: Path) -> Path:
    """The folder, made if need be, holding the model package of `spec`; files of the same names are replaced."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model, contract = _describe(spec)
    (folder / "model.onnx").write_bytes(model.SerializeToString(deterministic=True))
    tree = contract.model_dump(mode="json", exclude_none=True)
    (folder / "model.yaml").write_text(yaml.safe_dump(tree, sort_keys=False, default_flow_style=None), "utf-8")
    return folder


def _describe(spec: Spec) -> tuple[onnx.ModelProto, Contract]:
    match spec:
        case AdvectionSpec():
            tile = TileRule(stride=spec.stride, radius=spec.radius)
            return advection.write_graph(spec), _rain_contract("advection", spec, tile)
        case PersistenceSpec():
            return persistence.write_graph(spec), _rain_contract("persistence", spec, TileRule(stride=1, radius=0))
        case UnetSpec():
            return unet.write_graph(spec), _unet_contract(spec)


def _rain_contract(kind: str, spec: AdvectionSpec | PersistenceSpec, tile: TileRule) -> Contract:
    """Rain rate in, rain rate out, the model itself saying which cells are missing."""
    return Contract(
        name=kind,
        version="1.0",
        licence="Apache-2.0",
        description=KINDS[kind],
        input=ModelInput(**_RAIN, frames=len(spec.history_minutes), cadence=_cadence(spec), missing=MISSING),
        output=ModelOutput(
            **_RAIN,
            lead_times=tuple(timedelta(minutes=float(t)) for t in spec.lead_minutes),
            missing_below=MISSING_BELOW,
            coverage="model",
        ),
        tile=tile,
    )


def _cadence(spec: AdvectionSpec | PersistenceSpec) -> timedelta | None:
    times = spec.history_minutes
    return timedelta(minutes=float(times[1] - times[0])) if len(times) > 1 else None


def _unet_contract(spec: UnetSpec) -> Contract:
    """log10 of rain rate in and out; missing cells are given as dry and marked again by squall."""
    step = timedelta(minutes=float(spec.step_minutes))
    leads = tuple(step * n for n in range(1, spec.leads + 1))
    return Contract(
        name="unet",
        version="1.0",
        licence="Apache-2.0",
        description=KINDS["unet"],
        input=ModelInput(**_RAIN, frames=spec.frames, cadence=step, transform=_LOG10, missing=_DRY),
        output=ModelOutput(**_RAIN, lead_times=leads, transform=_LOG10, coverage="input"),
        tile=TileRule(stride=spec.stride, radius=spec.radius),
    )
