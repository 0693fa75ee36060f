"""The gate on an engine of a model package: reference, candidate, rules and report, put together from contract and use.

The reference is float32 in ONNX Runtime. On a CPU half is judged by a graph that rounds as a device would, for ONNX
Runtime computes half in float32 there.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from engines.base import Engine
from engines.cases import Tensor
from engines.comparison import Infer, Rules
from engines.cores import usable_cores
from engines.gate import Verdict, read_fields, run_gate
from engines.gate_page import write_report
from engines.ort import OnnxRuntime, OrtEngine
from engines.runtime import Runtime
from engines.supply import Supplied, Tell
from engines.typed import TypedModel, write_emulated
from jobs.cases import CaseSet
from jobs.engine import describe_engine
from jobs.setting import Setting
from pipelines.model_space import ModelSpace
from pipelines.transform import make_encoder
from pipelines.units import UNCHANGED, Linear, mm_per_hour_in, usual_thresholds

SCALE = 0.01  # mm h-1, of the packing where no product says otherwise


@dataclass(frozen=True)
class Physical:
    """From model space to what is published, for the gate; changes what it is given."""

    space: ModelSpace
    change: Linear = UNCHANGED

    def __call__(self, values: Tensor) -> Tensor:
        self.space.undo(values)
        values *= self.change.factor
        values += self.change.offset
        return values


@dataclass
class Remembered:
    """An engine that runs each input once; the reference is asked for the same cases by every candidate.

    It is as large as its weights, so it is opened when it has something to run, and closed when that is all.
    """

    open: Callable[[], Engine]
    _engine: Engine | None = None
    _known: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, batch: Tensor) -> Tensor:
        key = hashlib.sha256(batch.tobytes()).hexdigest()
        if key not in self._known:
            self._engine = self._engine or self.open()
            self._known[key] = self._engine(batch)
        return self._known[key]

    def close(self) -> None:
        """Keeps the results; another input opens the engine again."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None


def reference_of(setting: Setting) -> Remembered:
    """The model in float32 in ONNX Runtime, on all cores."""
    return Remembered(lambda: OrtEngine(setting.package.onnx_path, threads=usable_cores()))


def takes_one_size(runtime: Runtime) -> bool:
    """True if engines of a runtime take tiles of the size that they were built for only."""
    return not isinstance(runtime, OnnxRuntime)


def rules_of(setting: Setting, cases: CaseSet, one_size: bool) -> Rules:
    """How outputs of a model are compared: in units and packing of the product, if there is one.

    Thresholds are in units of the model, so they go the same way.

    Args:
        one_size: smaller tiles than the case cannot be run, so that no seam is measured.
    """
    encoder = None if setting.use is None else make_encoder(setting.use[0].output, setting.needs)
    change = UNCHANGED if encoder is None else encoder.change
    space, height, width = setting.needs.output_space, *cases.cases[0].inputs.shape[1:]
    quantity, asked = setting.needs.output_quantity, setting.package.contract.gate.thresholds
    thresholds = usual_thresholds(quantity) if asked is None else asked
    return Rules(
        Physical(space, change),
        scale=SCALE * mm_per_hour_in(quantity) if encoder is None else encoder.packing.scale_factor,
        offset=0.0 if encoder is None else encoder.packing.add_offset,
        thresholds=tuple(threshold * change.factor + change.offset for threshold in thresholds),
        missing_below=space.missing_below,
        radius=None if one_size else setting.tiles.radius,
        stride=setting.tiles.stride,
        tile=(height, width),
    )


@dataclass(frozen=True)
class Candidate:
    """An engine on trial, and what it is for the reader of the report."""

    model: TypedModel
    infer: Infer
    label: str


@contextmanager
def open_candidate(runtime: Runtime, supplied: Supplied, model: TypedModel, folder: Path) -> Iterator[Candidate]:
    """What the gate runs: the engine itself, or on a CPU what a device with half would compute. Either is closed.

    Args:
        folder: for the graph that rounds as a device.
    """
    label = describe_engine(supplied)
    with closing(supplied.engine) as engine:
        if not (isinstance(runtime, OnnxRuntime) and model.conversion.layers.half):
            yield Candidate(model, engine, label)
            return
    with closing(OrtEngine(write_emulated(model, folder), threads=usable_cores())) as emulated:
        yield Candidate(model, emulated, f"{label}; half rounded as a device rounds it")


def judge(
    setting: Setting,
    cases: CaseSet,
    reference: Infer,
    candidate: Candidate,
    runtime: Runtime,
    folder: Path,
    tell: Tell = lambda text: None,
) -> Verdict:
    """The verdict on a candidate by the limits of the contract; `gate.html` and `gate.json` are in `folder`.

    Raises:
        CaseError, InferenceError: a case does not fit, or an engine fails.
    """
    contract = setting.package.contract
    one_size = takes_one_size(runtime) or setting.tiles.size is not None
    rules = rules_of(setting, cases, one_size)
    lead_times = contract.output.leads
    run = _counted(candidate.infer, tell)
    verdict = run_gate(reference, run, cases.cases, lead_times, rules, contract.gate)
    fields = read_fields(reference, run, cases.cases, lead_times, rules, verdict.worst)
    write_report(folder, verdict, fields, _about(setting, cases, candidate, one_size), units_of(setting))
    return verdict


def _counted(infer: Infer, tell: Tell) -> Infer:
    done = 0

    def run(batch: Tensor) -> Tensor:
        nonlocal done
        out = np.asarray(infer(batch))
        done += 1
        tell(f"{done} inference(s) of the candidate")
        return out

    return run


def units_of(setting: Setting) -> str:
    """In which outputs are judged: those of the product, if there is one."""
    if setting.use is None:
        return setting.package.contract.output.units
    return str(setting.use[0].output.attributes.get("units", setting.package.contract.output.units))


def _about(setting: Setting, cases: CaseSet, candidate: Candidate, one_size: bool) -> dict[str, str]:
    model = candidate.model
    seam = {"seam": "not measured: the engine takes tiles of one size"} if one_size else {}
    int8 = {"calibration": "on these cases, unless the graph came with the package"}
    return {
        "model": setting.package.identity,
        "precision": f"{model.precision} ({model.conversion.layers})",
        "graph sha256": model.graph_sha256,
        "weights sha256": model.weights_sha256,
        "candidate": candidate.label,
        "reference": "float32 in ONNX Runtime",
        **cases.about,
        **(int8 if model.precision.arithmetic == "int8" else {}),
        **seam,
    }
