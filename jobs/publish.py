"""From a trained model to a release: checked, typed, built, judged, measured, added to the registry, promoted.

```
check -> cases -> type -> build -> gate (each for every precision) -> bench -> add -> promote
         |______ each leaves its result in the work folder _______________|   |_ harmless to repeat
```

A run that was killed goes on with the first step that is not finished and ends as it would have ended.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any, Literal, TypeVar

from engines.bench_page import summarize
from engines.cases import load_cases, save_cases
from engines.cores import usable_cores
from engines.model import ModelPackage
from engines.precision import CONVERTER_VERSION, Precision
from engines.registry import Move, Registry, RegistryError, Release
from engines.runtime import Runtime
from engines.supply import Supplied, Tell, find_runtime, supply
from engines.typed import PrecisionError, TypedModel, open_typed, type_model
from jobs import __version__
from jobs.bench import QUICK, measure
from jobs.bring import bring, digest_of, find_files
from jobs.cases import CaseSet, calibrating_on
from jobs.engine import batch_spec, describe_engine, open_cache
from jobs.folders import cache_folder, open_registry
from jobs.judge import Remembered, judge, open_candidate, reference_of, takes_one_size, units_of
from jobs.models import gate_report
from jobs.published import (
    Built,
    Gathered,
    Judged,
    Measured,
    PrecisionReport,
    PublishReport,
    Typed,
    judged,
)
from jobs.setting import Purpose, Setting, find_setting
from jobs.trial import keep_reports
from jobs.watch import SILENT, StepReport, Watcher
from jobs.work import Work, open_work

T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """What is to be published, how it is to be tried, and where it goes.

    Attributes:
        model: `model.onnx` under any name, with its weights beside it, or the folder of a model package.
        contract: `model.yaml` under any name; None = the one beside the model.
        registry: its folder or URL.
        alias: to move to the release if every precision passes; None = none.
    """

    model: Path
    contract: Path | None
    name: str
    precisions: tuple[Precision, ...]
    purpose: Purpose
    registry: str | Path
    alias: str | None = None
    who: str = ""
    why: str = ""


@dataclass(frozen=True)
class Step:
    """A step that leaves its result in the work folder; `precision` is None for what is done once.

    >>> str(Step("gate", Precision("half")))
    'gate-half'
    """

    verb: Literal["cases", "type", "build", "gate", "bench"]
    precision: Precision | None = None

    def __str__(self) -> str:
        return self.verb if self.precision is None else f"{self.verb}-{self.precision}"


def steps_of(precisions: Sequence[Precision]) -> tuple[Step, ...]:
    """The steps whose results are kept, in their order.

    >>> [str(step) for step in steps_of([Precision("half")])]
    ['cases', 'type-half', 'build-half', 'gate-half', 'bench']
    """
    verbs: tuple[Literal["type", "build", "gate"], ...] = ("type", "build", "gate")
    return Step("cases"), *(Step(verb, precision) for verb in verbs for precision in precisions), Step("bench")


@dataclass(frozen=True)
class Desk:
    """What the steps share."""

    request: Request
    work: Work
    package: ModelPackage
    setting: Setting
    runtime: Runtime
    tell: Tell
    reference: Remembered
    typed_before: dict[Precision, TypedModel] = field(default_factory=dict)

    def cases(self) -> CaseSet:
        """The cases that were gathered."""
        return CaseSet(load_cases(self.work.folder / "cases.npz"), self.work.result("cases", Gathered).origin)

    def graph(self, precision: Precision) -> Path:
        """Where the graph of a precision lies."""
        if precision == Precision():
            return self.package.onnx_path
        return self.work.folder / "graphs" / f"{precision}.onnx"

    def typed(self, precision: Precision) -> TypedModel:
        """The graph of a precision, rewritten before; read once, for it is as large as its weights."""
        if precision not in self.typed_before:
            self.typed_before[precision] = (
                type_model(self.package, precision, self.work.folder)
                if precision == Precision()
                else open_typed(self.graph(precision), precision, allow=True)
            )
        return self.typed_before[precision]

    def supply(self, precision: Precision) -> Supplied:
        """The engine of a precision."""
        spec = batch_spec(self.setting.shape, precision)
        return supply(self.runtime, open_cache(), self.typed(precision), spec, self.tell)


def publish(request: Request, watcher: Watcher = SILENT) -> PublishReport:
    """The report of a release that is in the registry now; it was promoted if that was asked and nothing refused.

    Raises:
        ModelError: the model or its contract is refused, or its version stands in the registry with another model.
        PipelineError, EngineError: product, cases or engine cannot be had (names why).
    """
    clock, runtime = _Clock(watcher), find_runtime(threads=usable_cores())
    files = find_files(request.model, request.contract)
    with open_work(cache_folder() / "publish", _digest(request, files, runtime), watcher.says) as work:
        desk = clock.time("check", lambda: _check(request, files, work, runtime, watcher.says))
        for step in steps_of(request.precisions):
            clock.keep(desk, step)
        change = describe_change(open_registry(request.registry), request.name, desk.package)
        release = clock.time("add", lambda: _add(desk))
        reports = tuple(_report(work, precision) for precision in request.precisions)
        move = None
        if request.alias is not None and all(report.judged.is_go for report in reports):
            move = clock.time("promote", lambda: _promote(desk, release))
        return _summary(desk, change, reports, clock.steps, release, move)


@dataclass
class _Clock:
    """Times steps and tells of them."""

    watcher: Watcher
    steps: list[StepReport] = field(default_factory=list)

    def time(self, name: str, action: Callable[[], T]) -> T:
        self.watcher.begins(name)
        started = monotonic()
        result = action()
        self._end(StepReport(name, monotonic() - started))
        return result

    def keep(self, desk: Desk, step: Step) -> None:
        """Does a step and keeps its result, unless that is there."""
        action, kind = _ACTIONS[step.verb]
        if desk.work.is_done(str(step), kind):
            self._end(StepReport(str(step), desk.work.seconds(str(step)), was_finished=True))
            return
        self.watcher.begins(str(step))
        started = monotonic()
        result = action(desk, step.precision or Precision())
        seconds = monotonic() - started
        desk.work.keep(str(step), seconds, result)
        self._end(StepReport(str(step), seconds))

    def _end(self, report: StepReport) -> None:
        self.steps.append(report)
        self.watcher.ended(report)


def _digest(request: Request, files: Mapping[str, Path], runtime: Runtime) -> str:
    """A name for all that the kept results depend on."""
    given = {"product": request.purpose.product, "cases": request.purpose.cases}
    others = {name: path for name, path in given.items() if path is not None}
    precisions = " ".join(map(str, request.precisions))
    versions = f"squall {__version__}, converter {CONVERTER_VERSION}, {runtime.label}"
    return digest_of({**files, **others}, (precisions, str(request.purpose), versions))


def _check(request: Request, files: Mapping[str, Path], work: Work, runtime: Runtime, tell: Tell) -> Desk:
    """Everything that can be refused before anything takes long."""
    package = bring(files, work.folder / "package")
    _check_version(open_registry(request.registry), request.name, package)
    setting = find_setting(package, request.purpose)
    return Desk(request, work, package, setting, runtime, tell, reference_of(setting))


def _check_version(registry: Registry, name: str, package: ModelPackage) -> None:
    """Raises RegistryError if the version stands with another model: it would be refused at the end."""
    there = registry.find(name, package.contract.version)
    ours = package.graph_sha256, package.weights_sha256
    if there is not None and (there.graph_sha256, there.weights_sha256) != ours:
        raise RegistryError(
            f"version {there.version} of {name} stands in the registry with another model; a version never changes, "
            "so give the contract a new version"
        )


def _gather(desk: Desk, _: Precision) -> Gathered:
    desk.tell("gathering cases")
    found = desk.setting.gather_cases(desk.request.purpose.cases, takes_one_size(desk.runtime))
    save_cases(desk.work.folder / "cases.npz", found.cases)
    return Gathered(found.origin)


def _type(desk: Desk, precision: Precision) -> Typed:
    desk.tell("rewriting the graph")
    model = _rewrite(desk, precision)
    if precision != Precision():
        desk.work.put(f"graphs/{precision}.onnx", model.path.read_bytes())
    obtained = model.conversion.obtained
    why = f"the graph is {obtained}, it has nothing to compute in {precision}; ask for {obtained}"
    fault = "" if obtained == precision else why
    return Typed(str(obtained), str(model.conversion.layers), model.graph_sha256, model.weights_sha256, fault)


def _rewrite(desk: Desk, precision: Precision) -> TypedModel:
    folder = desk.work.folder / "rewritten"
    if precision.arithmetic != "int8":
        return type_model(desk.package, precision, folder, allow=True)
    cases = desk.cases()
    with calibrating_on(cases):
        return type_model(desk.package, precision, folder, cases.inputs, allow=True)


def _build(desk: Desk, precision: Precision) -> Built:
    fault = _typed(desk.work, precision).fault
    if fault:
        return Built(fault=fault)
    try:
        supplied = desk.supply(precision)
    except PrecisionError as error:
        return Built(fault=str(error))
    supplied.engine.close()
    notes = supplied.manifest.notes
    return Built(
        supplied.how, supplied.seconds, supplied.key.digest, supplied.manifest.size_bytes, describe_engine(supplied),
        notes.get("obtained", "unknown"), notes.get("computed", ""),
    )  # fmt: skip


def _gate(desk: Desk, precision: Precision) -> Judged:
    fault = desk.work.result(str(Step("build", precision)), Built).fault
    if fault:
        tree = {"verdict": "no-go", "summary": f"Do not use it: {fault}.", "failures": []}
        desk.work.put(f"reports/{gate_report(precision)}", json.dumps(tree, indent=1).encode())
        return Judged(False, str(tree["summary"]))
    supplied, folder = desk.supply(precision), desk.work.folder / "judging"
    with open_candidate(desk.runtime, supplied, desk.typed(precision), folder) as candidate:
        verdict = judge(desk.setting, desk.cases(), desk.reference, candidate, desk.runtime, folder, desk.tell)
    keep_reports(folder, desk.work.folder / "reports", precision)
    return judged(verdict, units_of(desk.setting))


def _bench(desk: Desk, _: Precision) -> Measured:
    desk.reference.close()
    there = [p for p in desk.request.precisions if not desk.work.result(str(Step("build", p)), Built).fault]
    models, shapes = {p: desk.typed(p) for p in there}, [desk.setting.shape]
    folder = desk.work.folder / "reports"
    report = measure(desk.package, shapes, models, desk.supply, desk.cases(), folder, QUICK, desk.tell)
    return Measured(summarize(report))


_ACTIONS: Mapping[str, tuple[Callable[[Desk, Precision], Any], type[Any]]] = {
    "cases": (_gather, Gathered),
    "type": (_type, Typed),
    "build": (_build, Built),
    "gate": (_gate, Judged),
    "bench": (_bench, Measured),
}


def _add(desk: Desk) -> Release:
    """Puts the package with its graphs, cases and reports into the registry; a version that stands keeps its cases."""
    request, folder = desk.request, desk.work.folder
    graphs = [desk.graph(p) for p in request.precisions if p != Precision() and not _typed(desk.work, p).fault]
    reports = sorted((folder / "reports").glob("[!.]*"))  # a killed run may have left a draft of one
    registry = open_registry(request.registry)
    stands = registry.find(request.name, desk.package.contract.version) is not None
    cases = () if stands else (folder / "cases.npz",)
    return registry.add(desk.package.folder, request.name, reports, cases, request.who, request.why, graphs)


def _promote(desk: Desk, release: Release) -> Move:
    request = desk.request
    assert request.alias is not None
    registry = open_registry(request.registry)
    return registry.promote(release.name, release.version, request.alias, request.who, request.why)


def describe_change(registry: Registry, name: str, package: ModelPackage) -> str:
    """What a package changes against the version in production, in a few words."""
    move = registry.current(name) if name in registry.models() else None
    if move is None:
        return "nothing is in production yet"
    there = registry.release(name, move.version)
    if there.graph_sha256 != package.graph_sha256:
        return f"another graph than {there.version}, which is in production"
    if there.weights_sha256 != package.weights_sha256:
        return f"only the weights differ from {there.version}, which is in production"
    return f"the same graph and weights as {there.version}, which is in production"


def _typed(work: Work, precision: Precision) -> Typed:
    return work.result(str(Step("type", precision)), Typed)


def _report(work: Work, precision: Precision) -> PrecisionReport:
    built = work.result(str(Step("build", precision)), Built)
    verdict = work.result(str(Step("gate", precision)), Judged)
    return PrecisionReport(str(precision), _typed(work, precision), built, verdict)


def _summary(
    desk: Desk,
    change: str,
    precisions: tuple[PrecisionReport, ...],
    steps: Sequence[StepReport],
    release: Release,
    move: Move | None,
) -> PublishReport:
    return PublishReport(
        name=release.name,
        version=release.version,
        identity=desk.package.identity,
        graph_sha256=desk.package.graph_sha256,
        weights_sha256=desk.package.weights_sha256,
        change=change,
        runtime=desk.runtime.label,
        shape=desk.setting.shape,
        cases=desk.cases().about["cases"],
        bench=desk.work.result("bench", Measured).headline,
        precisions=precisions,
        steps=tuple(steps),
        release=release,
        reports=desk.work.folder / "reports",
        move=move,
    )
