"""The bench on engines of a package: the model as it was, in ONNX Runtime, beside the engines that were made of it."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from engines.bench import Effort, Progress, Subject, bench, noise
from engines.bench_page import summarize, write_report
from engines.bench_report import Batch
from engines.cores import usable_cores
from engines.ort import OrtEngine
from engines.precision import Precision
from engines.spec import Shape
from engines.supply import Supplied, Tell
from jobs.cases import CaseSet
from jobs.engine import describe_engine
from jobs.published import Measured
from jobs.setting import Setting

QUICK = Effort(seconds=3, rounds=3)

Supply = Callable[[Precision], Supplied]


def measure(
    setting: Setting,
    supply: Supply,
    precisions: Sequence[Precision],
    cases: CaseSet,
    folder: Path,
    effort: Effort,
    tell: Tell,
) -> Measured:
    """The headline of a bench; `bench.html` and `bench.json` are in `folder`.

    Args:
        supply: gives the engine of a precision.
        cases: what the engines run on, where they are as large as a tile; else it is noise.
    """
    package = setting.package
    subjects = [Subject("the model in ONNX Runtime", lambda: OrtEngine(package.onnx_path, usable_cores()))]
    subjects += [_subject(precision, supply) for precision in precisions]
    report = bench(
        subjects,
        [setting.shape],
        effort,
        inputs=_inputs(cases),
        about={"model": package.identity, **cases.about},
        on_progress=lambda progress: tell(_line(progress)),
    )
    write_report(folder, report)
    return Measured(summarize(report))


def _subject(precision: Precision, supply: Supply) -> Subject:
    """The engine of a precision; what is measured as loading is loading from the cache."""
    supplied = supply(precision)
    supplied.engine.close()
    notes = {"engine": describe_engine(supplied)}
    return Subject(f"engine, {precision}", lambda: supply(precision).engine, supplied.manifest.size_bytes, notes=notes)


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
