"""Rows and pictures of what was measured: a case beside its floor, contenders side by side, a cycle as a timeline."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bench import Bench
from benchmarks.cases import Case
from benchmarks.floor import Floor, floor_of, measure_coding, measure_crowding
from benchmarks.laps import Ran
from benchmarks.ours import activities_from
from benchmarks.sampler import mean
from benchmarks.timeline import busy_share, draw_timeline
from jobs.trace import write_trace
from pipelines.cycles import PublishedCycle, newest_cycle
from pipelines.source import find_inputs

HEAD = (
    "| case | squall | goal | floor | ratio | ratio, cores crowded | bound by | GPU / link / cores / disk s | "
    "GB worst / tree | pinned GB | device GB |\n|---|---|---|---|---|---|---|---|---|---|---|"
)
NAMES = {"traced": "**squall**", "engine_loop": "plain loop", "engine_ray_data": "Ray Data"}


def case_row(bench: Bench, case: Case, ran: Ran, goal: str, one_block: bool) -> str:
    """The row of a case: what it took, the floor of the same work, what bounds it, and the memory that it took.

    The ratio is given twice: to the floor of cores that work one at a time, and of all cores at once.

    Args:
        one_block: judge the time of one cycle; else cycles a second, whose floor has no last block.
    """
    facts = ran.facts[ran.typical]
    cycles, floor = facts.get("cycles", 1), measure_floor(bench, case, facts)
    crowding = measure_crowding(case.prepared, Path(_newest(case).path), bench.cores)
    value, memory = ran.median / cycles, _memory(bench, case, ran)
    least, crowded = (f.seconds if one_block else f.busy for f in (floor, floor.crowded(crowding)))
    kept = {"value": value, "floor": least, "ratio": value / least, "bound": floor.bound, "goal": goal}
    kept |= {"crowding": crowding, "crowded_floor": crowded, "crowded_ratio": value / crowded}
    kept |= {"laps": ran.seconds, "cycles": cycles, "parts": floor.parts, "blocks": floor.blocks}
    kept |= {"run": facts["run"], "reused": facts["reused"], "workers": facts["workers"], **memory}
    bench.record[("cycle " if one_block else "backfill ") + case.name] = kept
    parts = " / ".join(f"{seconds:.3f}" for seconds in floor.parts.values())
    shown = (f"{value:.3f} s", f"{least:.3f} s") if one_block else (f"{1 / value:.2f} /s", f"{1 / least:.2f} /s")
    return (
        f"| {case.name}, {facts['run'] / cycles:.0f} tiles run, {facts['reused'] / cycles:.0f} reused | {shown[0]} | "
        f"{goal} | {shown[1]} | {value / least:.2f} | "
        f"{value / crowded:.2f} ({crowding:.2f} times) | {floor.bound} | {parts} | {_memory_cells(memory)} |"
    )


def measure_floor(bench: Bench, case: Case, facts: Mapping[str, Any]) -> Floor:
    """The floor of a cycle like the one that was published last."""
    prepared, cycles = case.prepared, facts.get("cycles", 1)
    published = _newest(case)
    cycle = find_inputs(prepared.source, prepared.product, published.reference_time)
    share = facts["run"] / max(1, facts["run"] + facts["reused"])
    given, returned = (spec.dtype for spec in bench.engine(case).engine.specs)
    coding = measure_coding(prepared, cycle, Path(published.path), case.folder / "scratch", share, returned)
    batches, blocks = facts["run"] / cycles / case.batch, len(prepared.plan.tiling.blocks())
    bare, (into, out) = bench.bare(case), bench.crossing(case)
    if into != given:
        coding, bare = replace(coding, decode=0.0), replace(bare, bytes_in=_as(into, given, bare.bytes_in))
    if out != returned:
        coding, bare = replace(coding, pack=0.0), replace(bare, bytes_out=_as(out, returned, bare.bytes_out))
    return floor_of(bare, coding, batches, bench.link, bench.cores, blocks)


def _as(codes: str, numbers: str, nbytes: int) -> int:
    """Bytes of as many codes as there are numbers in so many bytes."""
    return nbytes // np.dtype(numbers).itemsize * np.dtype(codes).itemsize


def _newest(case: Case) -> PublishedCycle:
    product = case.prepared.product
    published = newest_cycle(product.output.store, product.name)
    assert published is not None
    return published


def rivals_table(bench: Bench, case: Case, ran: Mapping[str, Ran]) -> Iterator[str]:
    """Contenders side by side; those whose forecast is another one are said to be so."""
    yield "| by | warm s (range) | / squall | cells that differ, most codes | GB worst / tree | pinned GB | device GB |"
    yield "|---|---|---|---|---|---|---|"
    kept = {}
    for name, one in ran.items():
        memory, seconds = _memory(bench, case, one), one.seconds
        away = f"{one.apart.differing}, {one.apart.most}" + " WRONG" * (one.apart.most > 1)
        yield (
            f"| {NAMES[name]} | {one.median:.3f} ({min(seconds):.3f} to {max(seconds):.3f}) | "
            f"{one.median / ran['traced'].median:.2f} | {'' if name == 'traced' else away} | {_memory_cells(memory)} |"
        )
        kept[name] = {"seconds": seconds, "apart": asdict(one.apart), **memory}
    bench.record[f"rivals {case.name}"] = kept


def _memory(bench: Bench, case: Case, ran: Ran) -> dict[str, int | None]:
    """Bytes on the host and the GPU: pinned ones as the contender says, else by the engine and the number of workers.

    Device memory is that of the driver of the GPU, which counts all; where it says nothing, that of the engines.
    """
    facts = ran.facts[-1]
    pinned = facts["pinned"] if "pinned" in facts else bench.pinned_bytes(case, facts["workers"])
    host = {"worst_bytes": ran.worst_bytes, "tree_bytes": ran.tree_bytes}
    device = ran.device_bytes if ran.device_bytes is not None else facts.get("device") or None
    return {**host, "pinned_bytes": pinned, "device_bytes": device}


def _memory_cells(memory: Mapping[str, int | None]) -> str:
    device = memory["device_bytes"]
    return (
        f"{gb(memory['worst_bytes'] or 0)} / {gb(memory['tree_bytes'] or 0)} | {gb(memory['pinned_bytes'] or 0)} | "
        f"{'not known' if device is None else gb(device)}"
    )


def busy_line(ran: Ran) -> str:
    """How busy the machine was in the warm laps."""
    seen = ran.warm_samples
    shares = {
        "GPU": mean(s.gpu for s in seen), "cores": mean(s.cores for s in seen), "disk": mean(s.disk_busy for s in seen)
    }  # fmt: skip
    busy = ", ".join(f"{name} {share:.0%}" for name, share in shares.items() if share is not None)
    return f"busy: {busy}; disk {_rate(mean(s.disk for s in seen))}, host link {_rate(mean(s.link for s in seen))}"


def pictures(bench: Bench, case: Case, ran: Ran) -> Iterator[str]:
    """Timeline and trace of the warm cycle nearest to the median, and what of it some thread was in each stage."""
    facts, samples = ran.facts[ran.typical], ran.samples[ran.typical]
    activities = activities_from(facts)
    title = f"{case.name}, {facts['seconds'] * 1e3:.0f} ms, {facts['run']} tiles run, {facts['reused']} reused"
    draw_timeline(bench.home / f"timeline-{case.name}.png", title, activities, samples)
    write_trace(bench.home / f"trace-{case.name}.json", activities)
    (cycle,) = (a.span for a in activities if a.span.stage == "cycle")
    stages = sorted({a.span.stage for a in activities} - {"cycle"})
    shares = {stage: busy_share(activities, stage, cycle.start, cycle.end) for stage in stages}
    yield "\nShare of the cycle in which some thread was in: " + ", ".join(f"{k} {v:.0%}" for k, v in shares.items())


def gb(count: float) -> str:
    return f"{count / 1e9:.3f}"


def _rate(rate: float | None) -> str:
    return "not known" if rate is None else f"{rate / 1e6:.0f} MB/s"
