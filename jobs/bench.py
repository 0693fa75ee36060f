"""The bench on engines of a package: the model as it was, in ONNX Runtime, beside the engines that were made of it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from engines.bench import Effort, Progress, Subject, bench, noise
from engines.bench_page import write_report
from engines.bench_report import Batch, Report
from engines.cores import usable_cores
from engines.graph import weights_bytes
from engines.model import ModelPackage
from engines.ort import OrtEngine
from engines.precision import Precision
from engines.spec import Shape
from engines.supply import Supplied, Tell
from engines.typed import TypedModel
from jobs.cases import CaseSet
from jobs.engine import describe_engine

QUICK = Effort(seconds=3, rounds=3)

Supply = Callable[[Precision], Supplied]


def batches_to(largest: Shape, takes: int | None = None) -> tuple[Shape, ...]:
    """Batches of 1, 2, 4 ... tiles and the largest; that one alone where a model takes one count of tiles only.

    >>> [n for n, *_ in batches_to((6, 4, 512, 512))]
    [1, 2, 4, 6]
    """
    count, *rest = largest
    fewer = () if takes else (2**power for power in range(count.bit_length()))
    return tuple((n, *rest) for n in sorted({*fewer, count}))


def measure(
    package: ModelPackage,
    shapes: Sequence[Shape],
    models: Mapping[Precision, TypedModel],
    supply: Supply,
    cases: CaseSet,
    folder: Path,
    effort: Effort,
    tell: Tell,
) -> Report:
    """What a bench found; `bench.html` and `bench.json` are in `folder`.

    Args:
        shapes: (n, channel, h, w) of the batches.
        models: the graph of each precision.
        supply: gives the engine of a precision.
        cases: what the engines run on, where they are as large as a tile; else it is noise.
    """
    subjects = [_reference(package), *(_subject(precision, model, supply) for precision, model in models.items())]
    report = bench(
        subjects,
        shapes,
        effort,
        inputs=_inputs(cases),
        about={"model": package.identity, **cases.about},
        on_progress=lambda progress: tell(_line(progress)),
    )
    write_report(folder, report)
    return report


def _reference(package: ModelPackage) -> Subject:
    def load() -> OrtEngine:
        return OrtEngine(package.onnx_path, usable_cores())

    return Subject("the model in ONNX Runtime", load, weights_bytes=weights_bytes(package.onnx_path))


def _subject(precision: Precision, model: TypedModel, supply: Supply) -> Subject:
    """The engine of a precision; what is measured as loading is loading from the cache."""
    supplied = supply(precision)
    supplied.engine.close()
    notes = {"engine": describe_engine(supplied)}
    sizes = supplied.manifest.size_bytes, weights_bytes(model.path)
    return Subject(f"engine, {precision}", lambda: supply(precision).engine, *sizes, notes)


def _inputs(cases: CaseSet) -> Callable[[Shape, str], Batch]:
    """Batches of cases, again and again."""

    def batch(shape: Shape, dtype: str) -> Batch:
        if cases.cases[0].inputs.shape != shape[1:]:
            return noise(shape, dtype)
        every = [case.inputs for case in cases.cases]
        return np.stack([every[k % len(every)] for k in range(shape[0])]).astype(dtype)

    return batch


def _line(progress: Progress) -> str:
    return f"{progress.done} of {progress.steps}: {progress.doing}"
