"""Gate and bench on a package outside of publishing: typed, built, tried; reports in a folder of the user's."""

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from engines.bench import Effort
from engines.bench_report import Report
from engines.cores import usable_cores
from engines.files import replace_file
from engines.model import ModelPackage
from engines.precision import Precision
from engines.scratch import scratch_folder
from engines.supply import Supplied, find_runtime, supply
from engines.typed import TypedModel, type_model
from jobs.bench import batches_to, measure
from jobs.cases import CaseSet, calibrating_on
from jobs.engine import GRAPHS, batch_spec, open_cache, typed_graph
from jobs.folders import cache_folder
from jobs.judge import judge, open_candidate, reference_of, takes_one_size, units_of
from jobs.models import gate_report
from jobs.published import Judged, judged
from jobs.setting import Purpose, find_setting
from jobs.watch import SILENT, Watcher


def try_package(
    package: ModelPackage, precisions: Sequence[Precision], purpose: Purpose, out: Path, watcher: Watcher = SILENT
) -> dict[str, Judged]:
    """The verdict on each precision; its report is in `out` as `gate-<precision>.html` and `.json`.

    Raises:
        EngineError, PipelineError: product, cases or engine cannot be had (names why).
    """
    setting, runtime = find_setting(package, purpose), find_runtime(threads=usable_cores())
    watcher.begins("cases")
    cases = setting.gather_cases(purpose.cases, takes_one_size(runtime))
    verdicts = {}
    with closing(reference_of(setting)) as reference:
        for precision in precisions:
            watcher.begins(f"gate-{precision}")
            model = graph_of(package, precision, lambda: cases)
            supplied = supply(runtime, open_cache(), model, batch_spec(setting.shape, precision), watcher.says)
            with (
                scratch_folder("squall-scratch-gate-") as folder,
                open_candidate(runtime, supplied, model, folder) as candidate,
            ):
                verdict = judge(setting, cases, reference, candidate, runtime, folder, watcher.says)
                keep_reports(folder, out, precision)
            verdicts[str(precision)] = judged(verdict, units_of(setting))
    return verdicts


def bench_package(
    package: ModelPackage, precisions: Sequence[Precision], purpose: Purpose, out: Path, watcher: Watcher = SILENT
) -> Report:
    """What a bench found of the engines of a package, over batches; `bench.html` and `bench.json` are in `out`.

    Raises:
        EngineError, PipelineError: product, cases or engine cannot be had (names why).
    """
    setting, runtime = find_setting(package, purpose), find_runtime(threads=usable_cores())
    watcher.begins("cases")
    cases = setting.gather_cases(purpose.cases, takes_one_size(runtime))
    watcher.begins("bench")
    models = {precision: graph_of(package, precision, lambda: cases) for precision in precisions}

    def engine(precision: Precision) -> Supplied:
        spec = batch_spec(setting.shape, precision)
        return supply(runtime, open_cache(), models[precision], spec, watcher.says)

    shapes = batches_to(setting.shape, setting.tiles.batch)
    return measure(package, shapes, models, engine, cases, out, Effort(), watcher.says)


def graph_of(package: ModelPackage, precision: Precision, cases: Callable[[], CaseSet]) -> TypedModel:
    """The graph of a package in a precision: the one that came with it, else rewritten; int8 is calibrated on cases."""
    stored = package.folder / GRAPHS / f"{precision}.onnx"
    if precision.arithmetic != "int8" or stored.is_file():
        return typed_graph(package, precision)
    given = cases()
    with calibrating_on(given):
        return type_model(package, precision, cache_folder() / GRAPHS, given.inputs)


def keep_reports(made: Path, out: Path, precision: Precision) -> None:
    """Puts `gate.html` and `gate.json` of a folder into `out`, under the names of a precision."""
    page = gate_report(precision).removesuffix(".json") + ".html"
    for name, target in (("gate.html", page), ("gate.json", gate_report(precision))):
        replace_file(out / target, (made / name).read_bytes())
