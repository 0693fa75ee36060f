"""The gate lets honest half precision pass and refuses every planted fault; what it measures is what it says."""

from collections.abc import Callable, Sequence
from datetime import timedelta

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import TensorProto, helper, numpy_helper

from engines.base import InferenceError
from engines.cases import Case, CaseError, cases_from_arrays, digest, intensity, load_cases, save_cases, widen
from engines.comparison import Rules
from engines.gate import Reading, Verdict, measure, read_fields, run_gate
from engines.gate_page import to_json
from engines.model import Contract, GateLimits
from engines.precision import emulate_half, to_half, to_int8
from engines.zoo import AdvectionSpec, PersistenceSpec, UnetSpec, advection, persistence, unet

LEADS = (timedelta(minutes=5), timedelta(minutes=10))
DRY = -2.0
# int8 must ask for wider limits; these are the ones of the decision record, for a log-input U-Net.
INT8 = GateLimits.model_validate(
    {
        "rmse_over_std": {"ordinary": 0.04, "extreme": 0.1},
        "bias": 0.01,
        "maximum_bias": {"ordinary": 0.1, "extreme": 0.35},
        "moved_codes": 0.9,
        "csi_loss": 0.08,
        "fss_loss": 0.01,
    }
)


def rain(frames: int, seed: int, shape: tuple[int, int] = (96, 96), most: float = 20, step: int = 2) -> np.ndarray:
    """(frame, y, x) mm h-1, showers up to `most` that drift by `step` cells a frame; 0 where dry."""
    random, field = np.random.default_rng(seed), np.zeros((frames, *shape))
    y, x = np.arange(shape[0])[:, None], np.arange(shape[1])
    for _ in range(max(20, shape[0] * shape[1] // 500)):
        (at_y, at_x), size, peak = random.uniform(0, 1, 2) * shape, random.uniform(3, 9), random.uniform(0.5, most)
        for k in range(frames):
            away = (y - at_y) ** 2 + (x - at_x - step * (k - frames + 1)) ** 2
            field[k] += peak * np.exp(-away / (2 * size**2))
    return np.where(field < 0.1, 0, field).astype(np.float32)


def to_log(field: np.ndarray) -> np.ndarray:
    return np.where(field < 0.1, DRY, np.log10(np.maximum(field, 0.1))).astype(np.float32)


def from_log(values: np.ndarray) -> np.ndarray:
    return np.where(values < -1, 0, 10.0**values)


def as_is(values: np.ndarray) -> np.ndarray:
    return values


def load(model: onnx.ModelProto) -> Callable[[np.ndarray], np.ndarray]:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda batch: np.asarray(session.run(None, {"frames": batch})[0])


class Subject:
    """A zoo model with its float32 engine, cases and rules."""

    def __init__(self, graph: onnx.ModelProto, cases: Sequence[Case], rules: Rules) -> None:
        self.graph, self.cases, self.rules, self.reference = graph, cases, rules, load(graph)

    def verdict(self, candidate: object, limits: GateLimits | None = None) -> Verdict:
        engine = load(candidate) if isinstance(candidate, onnx.ModelProto) else candidate
        return run_gate(self.reference, engine, self.cases, LEADS, self.rules, limits)


def showers(frames: int, made: Callable[[np.ndarray], np.ndarray], size: tuple[int, int]) -> tuple[Case, ...]:
    """Three ordinary cases and one four times as strong."""
    fields = {f"c{seed}": made(rain(frames, seed, size)) for seed in range(3)}
    return cases_from_arrays(fields | {"strong": made(4 * rain(frames, 9, size))})


def with_gap(field: np.ndarray) -> np.ndarray:
    """Rain as advection takes it: -1 where the radar does not see."""
    field = field.copy()
    field[:, :24, :24] = -1
    return field


@pytest.fixture(scope="module")
def log_unet() -> Subject:
    spec = UnetSpec(width=4, depth=2, frames=3, leads=2)
    rules = Rules(from_log, 0.01, radius=spec.radius, stride=spec.stride)
    return Subject(unet.write_graph(spec), showers(3, to_log, (96, 96)), rules)


@pytest.fixture(scope="module")
def flow() -> Subject:
    graph = advection.write_graph(AdvectionSpec(spacing_km=(1, 1), lead_minutes=(5, 10)))
    return Subject(graph, showers(3, with_gap, (128, 144)), Rules(as_is, 0.01, missing_below=-0.5))


@pytest.fixture(scope="module")
def still() -> Subject:
    graph = persistence.write_graph(PersistenceSpec((-10, -5, 0), (5, 10)))
    return Subject(graph, showers(3, with_gap, (64, 64)), Rules(as_is, 0.01, missing_below=-0.5, radius=0))


def measures(verdict: Verdict) -> set[str]:
    return {reading.measure for reading in verdict.failures}


# what must pass


@pytest.mark.parametrize("name", ["log_unet", "flow", "still"])
def test_a_model_equals_itself_in_every_reading(name, request):
    subject = request.getfixturevalue(name)
    verdict = subject.verdict(subject.reference)
    assert verdict.is_go
    assert {reading.found for reading in verdict.readings} == {0.0}


@pytest.mark.parametrize("rounding", [to_half, lambda graph: emulate_half(to_half(graph))], ids=["half", "as a device"])
@pytest.mark.parametrize("name", ["log_unet", "flow", "still"])
def test_honest_half_precision_passes_with_room_to_spare(name, rounding, request):
    subject = request.getfixturevalue(name)
    verdict = subject.verdict(rounding(subject.graph))
    assert verdict.is_go
    room = {"moved_codes": 0.7}  # half itself is coarser than the packing where rain is strong
    assert all(r.excess(verdict.limits) < room.get(r.measure, 0.4) for r in verdict.readings)


def test_int8_calibrated_with_extremes_passes_limits_that_a_contract_gives_to_int8(log_unet):
    strong = [to_log(factor * rain(3, seed))[None] for seed, factor in ((20, 1), (21, 1), (22, 4), (23, 4))]
    verdict = log_unet.verdict(to_int8(log_unet.graph, strong), INT8)
    assert verdict.is_go, verdict.failures


# planted faults


def perturbed(graph: onnx.ModelProto, share: float) -> onnx.ModelProto:
    """The graph with every weight off by a random share of itself, be it of a convolution or of a sum of fields."""
    copy, random = onnx.ModelProto(), np.random.default_rng(0)
    copy.CopyFrom(graph)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    added = {name for node in graph.graph.node if node.op_type == "Add" for name in node.input}
    for node in copy.graph.node:
        has_weights = node.op_type in ("Conv", "ConvTranspose") or (node.op_type == "Mul" and node.output[0] in added)
        for place, name in enumerate(node.input):
            if has_weights and name in constants:
                off = constants[name] * (1 + share * random.normal(size=constants[name].shape))
                node.input[place] = f"{node.name}_weights_{place}"
                copy.graph.initializer.append(numpy_helper.from_array(off.astype(np.float32), node.input[place]))
    return copy


def half_coordinates(graph: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with the coordinates of every GridSample rounded to half."""
    copy, nodes = onnx.ModelProto(), []
    copy.CopyFrom(graph)
    for node in copy.graph.node:
        if node.op_type == "GridSample":
            rounded, back = f"{node.name}_half", f"{node.name}_float"
            nodes.append(helper.make_node("Cast", [node.input[1]], [rounded], to=TensorProto.FLOAT16))
            nodes.append(helper.make_node("Cast", [rounded], [back], to=TensorProto.FLOAT))
            node.input[1] = back
        nodes.append(node)
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy


def test_weights_off_by_a_hundredth_are_refused(log_unet, flow):
    for subject in (log_unet, flow):
        assert {"rmse_over_std", "bias"} <= measures(subject.verdict(perturbed(subject.graph, 0.01)))


def test_coordinates_in_half_are_refused_on_a_case_as_wide_as_the_tiles_they_spoil(flow):
    strips = [widen(Case(c.name, c.group, c.inputs[:, 32:96, :]), (64, 7168)) for c in flow.cases]
    wide = Subject(flow.graph, [strips[0], strips[-1]], flow.rules)
    assert {"rmse_over_std", "csi_loss"} <= measures(wide.verdict(half_coordinates(flow.graph)))
    assert wide.verdict(emulate_half(to_half(flow.graph))).is_go


def test_coordinates_in_half_do_no_harm_on_narrow_cases_so_a_tile_size_demands_wide_ones(flow):
    assert flow.verdict(half_coordinates(flow.graph)).is_go
    wide = Rules(as_is, 0.01, missing_below=-0.5, tile=(64, 7168))
    with pytest.raises(CaseError, match=r"at least one as large as the tile \(64, 7168\)"):
        run_gate(flow.reference, flow.reference, flow.cases, LEADS, wide)


def test_int8_calibrated_without_extremes_is_refused_even_by_the_limits_of_int8(log_unet):
    weak = [to_log(np.minimum(rain(3, seed), 3))[None] for seed in range(20, 24)]
    verdict = log_unet.verdict(to_int8(log_unet.graph, weak), INT8)
    assert {("rmse_over_std", "extreme"), ("bias", "extreme")} <= {(r.measure, r.group) for r in verdict.failures}


def test_int8_is_refused_by_the_defaults(log_unet):
    strong = [to_log(factor * rain(3, seed))[None] for seed, factor in ((20, 1), (22, 4))]
    assert not log_unet.verdict(to_int8(log_unet.graph, strong)).is_go


@pytest.mark.parametrize("name", ["log_unet", "flow"])
def test_lead_times_shifted_by_one_are_refused(name, request):
    subject = request.getfixturevalue(name)
    verdict = subject.verdict(lambda batch: subject.reference(batch)[:, [1, 1]])
    assert {"rmse_over_std", "csi_loss", "fss_loss"} <= measures(verdict)
    assert {reading.lead_time for reading in verdict.failures} == {LEADS[0]}


@pytest.mark.parametrize("name", ["log_unet", "flow", "still"])
def test_an_output_scaled_by_two_hundredths_is_refused(name, request):
    subject = request.getfixturevalue(name)
    verdict = subject.verdict(lambda batch: subject.reference(batch) * np.float32(1.02))
    assert {"rmse_over_std", "bias", "maximum_bias", "moved_codes"} <= measures(verdict)


def test_rain_that_is_scaled_by_two_hundredths_behind_a_logarithm_is_refused(log_unet):
    verdict = log_unet.verdict(lambda batch: log_unet.reference(batch) + np.float32(np.log10(1.02)))
    assert {"rmse_over_std", "bias", "maximum_bias"} <= measures(verdict)


def test_nan_for_one_input_pattern_is_refused_and_counted(still):
    strong = next(case for case in still.cases if case.group == "extreme")
    most = float(strong.inputs[-1].max())

    def sometimes(batch: np.ndarray) -> np.ndarray:
        out = still.reference(batch)
        return np.where(out == most, np.float32("nan"), out)

    verdict = still.verdict(sometimes)
    lost = [reading for reading in verdict.failures if reading.measure == "nan_cells"]
    assert {(r.group, r.case, r.found) for r in lost} == {("extreme", "strong", 1.0)}


def test_infinity_counts_as_nan_and_the_verdict_can_be_written(still):
    verdict = still.verdict(lambda batch: np.where(batch[:, -1:] > 5, np.float32("inf"), still.reference(batch)))
    assert "nan_cells" in measures(verdict)
    assert '"verdict": "no-go"' in to_json(verdict)


def test_a_candidate_of_nothing_but_nan_is_refused(still):
    assert not still.verdict(lambda batch: np.full_like(still.reference(batch), np.nan)).is_go


def test_a_model_of_nothing_but_nan_is_not_judged_equal_to_itself(still):
    def broken(batch: np.ndarray) -> np.ndarray:
        return still.reference(batch) * np.float32(np.nan)

    with pytest.raises(CaseError, match="give no value in any cell of any case"):
        run_gate(broken, broken, still.cases, LEADS, still.rules)


def test_missing_cells_made_dry_are_refused(still):
    assert "moved_missing" in measures(still.verdict(lambda batch: np.maximum(still.reference(batch), 0)))


def test_a_single_dry_cell_made_missing_is_refused(still):
    def other(batch: np.ndarray) -> np.ndarray:
        out = still.reference(batch).copy()
        out[..., -1, -1] = -1
        return out

    bare = Subject(still.graph, still.cases, Rules(as_is, 0.01, missing_below=-0.5))
    assert measures(bare.verdict(other)) == {"moved_missing"}


def test_infinity_where_the_reference_is_missing_is_refused(still):
    """It would be published as the greatest rain."""
    verdict = still.verdict(
        lambda batch: (lambda out: np.where(out < -0.5, np.float32("inf"), out))(still.reference(batch))
    )
    assert measures(verdict) == {"nan_cells"}


def test_nan_may_stand_for_missing(still):
    verdict = still.verdict(
        lambda batch: (lambda out: np.where(out < -0.5, np.float32("nan"), out))(still.reference(batch))
    )
    assert verdict.is_go


def test_one_bad_case_is_not_hidden_by_many_good_ones(still):
    fields = {f"c{seed:02d}": with_gap(rain(3, seed, (64, 64))) for seed in range(12)}
    cases = cases_from_arrays(fields, extremes=1)
    victim = next(case for case in cases if case.group == "ordinary")

    def once(batch: np.ndarray) -> np.ndarray:
        out = still.reference(batch)
        return np.roll(out, 1, axis=-1) if np.array_equal(batch[0], victim.inputs) else out

    verdict = run_gate(still.reference, once, cases, LEADS, still.rules)
    worst = next(reading for reading in verdict.failures if reading.measure == "rmse_over_std")
    assert worst.case == victim.name


def test_a_halo_shorter_than_the_reach_shows_as_a_seam(log_unet):
    short = Rules(from_log, 0.01, radius=4, stride=4)
    verdict = run_gate(log_unet.reference, log_unet.reference, log_unet.cases, LEADS, short)
    assert measures(verdict) == {"seam"}


# what is measured


def reading(readings: Sequence[Reading], measure: str, group: str, lead: int = 0) -> float:
    found = [r.found for r in readings if r.measure == measure and r.group == group and r.lead_time == LEADS[lead]]
    return found[0]


def test_readings_are_in_physical_units_and_put_in_proportion_to_the_group():
    field = np.zeros((1, 8, 8), np.float32)
    field[0, 0, 0] = 10
    cases = [Case("a", "ordinary", field), Case("b", "extreme", field * 2)]
    reference = lambda batch: np.repeat(batch, 2, axis=1)  # noqa: E731
    shifted = lambda batch: reference(batch) + np.float32(0.5)  # noqa: E731
    rules = Rules(lambda values: 3 * values, scale=0.1, thresholds=(1.0,), least_events=0)
    found = measure(reference, shifted, cases, LEADS, rules)
    std = np.std(30 * np.eye(1, 64))
    assert reading(found, "max_error", "ordinary") == pytest.approx(1.5)
    assert reading(found, "rmse_over_std", "ordinary") == pytest.approx(1.5 / std)
    assert reading(found, "bias", "ordinary") == pytest.approx(1.5 / (30 / 64))
    assert reading(found, "maximum_bias", "extreme") == pytest.approx(1.5 / 60)
    assert reading(found, "moved_codes", "ordinary") == 1.0
    assert reading(found, "csi_loss", "ordinary") == pytest.approx(1 - 1 / 64)


def test_a_threshold_that_hardly_any_cell_reaches_is_not_judged(still):
    rules = Rules(as_is, 0.01, missing_below=-0.5, thresholds=(0.1, 1000.0))
    found = measure(still.reference, still.reference, still.cases, LEADS, rules)
    assert {one.threshold for one in found} == {None, 0.1}


events = arrays.arrays(bool, (4, 5), elements=st.booleans())


@settings(max_examples=60, deadline=None)
@given(reference=events, candidate=events, observed=events)
def test_no_csi_against_observations_changes_by_more_than_the_csi_loss(reference, candidate, observed):
    def csi(one: np.ndarray, other: np.ndarray) -> float:
        return float((one & other).sum() / max(1, (one | other).sum())) if (one | other).any() else 1.0

    cases = [Case(group, group, reference[None].astype(np.float32)) for group in ("ordinary", "extreme")]
    rules = Rules(as_is, 1.0, thresholds=(0.5,), least_events=0)
    made = [np.repeat(field[None, None], 2, axis=1).astype(np.float32) for field in (reference, candidate)]
    if not (reference | candidate).any():
        return
    found = measure(lambda _: made[0], lambda _: made[1], cases, LEADS, rules)
    loss = reading(found, "csi_loss", "ordinary")
    assert abs(csi(candidate, observed) - csi(reference, observed)) <= loss + 1e-12


def test_the_same_engines_and_cases_give_the_same_bytes(log_unet):
    half = to_half(log_unet.graph)
    assert to_json(log_unet.verdict(half)) == to_json(log_unet.verdict(half))


def test_the_fields_behind_a_reading_are_those_of_its_case_and_lead_time(flow):
    candidate = lambda batch: flow.reference(batch) * np.float32(1.02)  # noqa: E731
    worst = flow.verdict(candidate).worst
    fields = read_fields(flow.reference, candidate, flow.cases, LEADS, flow.rules, worst)
    assert np.array_equal(np.isnan(fields.reference), np.isnan(fields.candidate))
    assert np.nanmax(fields.candidate) == pytest.approx(1.02 * np.nanmax(fields.reference), rel=1e-5)
    assert np.nanmax(fields.difference) > 0


# refusals


def test_an_output_of_another_shape_is_an_error_and_no_verdict(still):
    with pytest.raises(InferenceError, match=r"case 'c0' into \(1, 1, 64, 64\); expected \(1, 2, 64, 64\)"):
        still.verdict(lambda batch: still.reference(batch)[:, :1])


def test_a_gate_without_extremes_is_refused(still):
    calm = [case for case in still.cases if case.group == "ordinary"]
    with pytest.raises(CaseError, match="no case is extreme"):
        run_gate(still.reference, still.reference, calm, LEADS, still.rules)


def test_two_cases_of_one_name_are_refused(still):
    with pytest.raises(CaseError, match="each name once"):
        run_gate(still.reference, still.reference, [*still.cases, still.cases[0]], LEADS, still.rules)


# limits of the contract


CONTRACT = {
    "name": "m",
    "version": "1",
    "licence": "x",
    "input": {"standard_name": "r", "units": "1", "frames": 1},
    "output": {"standard_name": "r", "units": "1", "lead_times": ["5min"]},
}


def test_a_contract_without_a_gate_section_has_the_default_limits():
    assert Contract.model_validate(CONTRACT).gate == GateLimits()


def test_limits_are_one_number_or_one_for_each_group():
    gate = {"csi_loss": 0.5, "bias": {"ordinary": 0.1, "extreme": float("inf")}}
    limits = Contract.model_validate(CONTRACT | {"gate": gate}).gate
    assert (limits.csi_loss.ordinary, limits.csi_loss.extreme) == (0.5, 0.5)
    assert (limits.bias.ordinary, limits.bias.extreme) == (0.1, float("inf"))
    assert GateLimits.model_validate(limits.model_dump(mode="json")) == limits


@pytest.mark.parametrize(
    "gate",
    [
        {"csi": 1},
        {"bias": -0.1},
        {"bias": float("nan")},
        {"bias": True},
        {"bias": {"ordinary": 1}},
        {"thresholds": [1, 0.1]},
        {"thresholds": [1, 1]},
        {"thresholds": [float("inf")]},
    ],
)
def test_limits_that_make_no_sense_are_refused(gate):
    with pytest.raises(ValueError, match="gate"):
        Contract.model_validate(CONTRACT | {"gate": gate})


@given(found=st.floats(allow_nan=True, allow_infinity=True), limit=st.floats(0, allow_nan=False, allow_infinity=False))
def test_a_reading_holds_only_if_its_size_is_no_more_than_its_limit(found, limit):
    one, limits = Reading("bias", LEADS[0], "extreme", found), GateLimits.model_validate({"bias": limit})
    assert one.is_within(limits) == (-limit <= found <= limit)
    assert one.is_within(limits) or one.excess(limits) >= 1


# cases


def some_cases() -> tuple[Case, ...]:
    return cases_from_arrays({f"c{k}": np.full((2, 4, 4), k, np.float32) for k in range(6)}, extremes=2)


def test_the_most_intense_cases_are_extreme_and_never_left_out():
    assert [(c.name, c.group) for c in some_cases()] == [
        (f"c{k}", "extreme" if k > 3 else "ordinary") for k in range(6)
    ]
    few = cases_from_arrays({f"c{k}": np.full((2, 4, 4), k, np.float32) for k in range(60)}, count=8)
    assert [c.name for c in few if c.group == "extreme"] == ["c58", "c59"]


def test_one_wild_cell_makes_no_extreme():
    field = np.zeros((1, 100, 100), np.float32)
    field[0, 0, 0], field[0, 1, 1] = 900, np.nan
    assert intensity(field) == 0


def test_cases_survive_the_disk_and_equal_cases_give_equal_bytes(tmp_path):
    cases = some_cases()
    first, second = (save_cases(tmp_path / name, cases) for name in ("a.npz", "b.npz"))
    loaded = load_cases(first)
    assert digest(loaded) == digest(cases)
    assert [(c.name, c.group) for c in loaded] == [(c.name, c.group) for c in cases]
    assert first.read_bytes() == second.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "b.npz"]


@pytest.mark.parametrize("part", ["name", "group", "inputs"])
def test_the_digest_of_cases_tells_any_change(part):
    first, *rest = some_cases()
    other = {
        "name": Case("z", first.group, first.inputs),
        "group": Case(first.name, "extreme", first.inputs),
        "inputs": Case(first.name, first.group, first.inputs + 1),
    }
    assert digest([other[part], *rest]) != digest([first, *rest])


def test_a_file_of_cases_with_python_objects_is_refused_and_not_executed(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    np.savez(tmp_path / "bad.npz", **{"ordinary.a": np.array([Trap()], object)})
    with pytest.raises(CaseError, match="allow_pickle=False"):
        load_cases(tmp_path / "bad.npz")
    assert not (tmp_path / "sprung").exists()


def test_a_file_of_cases_that_unpacks_beyond_the_limit_is_refused_before_it_is(tmp_path, monkeypatch):
    path = save_cases(tmp_path / "large.npz", some_cases())
    monkeypatch.setattr("engines.cases.GREATEST_BYTES", 100)
    with pytest.raises(CaseError, match=r"large\.npz unpacks to \d+ bytes; at most 100"):
        load_cases(path)


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("calm.a", np.zeros((1, 2, 2), np.float32)),
        ("ordinary", np.zeros((1, 2, 2), np.float32)),
        ("ordinary.a", np.zeros((2, 2), np.float32)),
        ("ordinary.a", np.zeros((1, 2, 2), np.float64)),
        ("ordinary.a", np.zeros((0, 2, 2), np.float32)),
    ],
)
def test_a_file_that_holds_something_else_is_refused(tmp_path, key, values):
    np.savez(tmp_path / "bad.npz", **{key: values})
    with pytest.raises(CaseError):
        load_cases(tmp_path / "bad.npz")


@settings(max_examples=25, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_of_cases_is_refused_wherever_it_was_cut(tmp_path_factory, share):
    path = save_cases(tmp_path_factory.mktemp("c") / "cases.npz", some_cases())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CaseError, match=r"cases\.npz"):
        load_cases(path)


def test_a_file_of_cases_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(CaseError, match=r"none\.npz"):
        load_cases(tmp_path / "none.npz")


@pytest.mark.parametrize("cases", [[], [some_cases()[0]] * 2])
def test_no_cases_and_two_of_one_name_are_not_saved(tmp_path, cases):
    with pytest.raises(CaseError, match="at least one, and each name once"):
        save_cases(tmp_path / "a.npz", cases)


@pytest.mark.parametrize("extremes", [0, 3])
def test_a_split_that_leaves_a_group_empty_is_refused(extremes):
    with pytest.raises(CaseError, match="one ordinary and one extreme"):
        cases_from_arrays({f"c{k}": np.zeros((1, 2, 2), np.float32) for k in range(3)}, extremes=extremes)


def test_a_field_without_a_finite_cell_has_no_intensity():
    with pytest.raises(CaseError, match="no finite cell"):
        intensity(np.full((1, 2, 2), np.nan, np.float32))


def test_a_case_is_widened_by_mirrors_and_never_cut():
    case = Case("a", "extreme", np.arange(12, dtype=np.float32).reshape(1, 3, 4))
    wide = widen(case, (2, 9))
    assert wide.inputs.shape == (1, 3, 9)
    assert wide.inputs[0, 0].tolist() == [0, 1, 2, 3, 3, 2, 1, 0, 0]
