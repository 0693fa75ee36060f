"""A bench on a real GPU: the parts of a call add up, rows are no slower than calls, and the page is made.

    python -m pytest tests/gpu/test_bench_gpu.py -m gpu -s

The table that it measures is printed; limits are only on what must hold on any GPU.
"""

import onnx
import pytest

from engines import zoo
from engines.bench import Effort, Subject, bench
from engines.bench_page import from_json, summarize, to_memory_rows, to_rows, to_split_rows, write_report
from engines.ort import OrtEngine
from engines.precision import to_half
from engines.spec import BuildSpec, Profile
from engines.trt import TensorRTEngine, build, load_surface

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]

SHAPES = ((1, 4, 256, 256), (4, 4, 256, 256))
SPEC = BuildSpec((Profile.up_to(SHAPES[1]),), workspace_bytes=4 << 30, level=1)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """ONNX Runtime, and TensorRT in float32 and half, of one U-Net."""
    model = zoo.write_package(zoo.UnetSpec(width=16, depth=3), tmp_path_factory.mktemp("bench") / "unet") / "model.onnx"
    half = model.with_name("half.onnx")
    onnx.save(to_half(onnx.load(model)), half)
    subjects = [Subject("onnxruntime float32", lambda: OrtEngine(model, threads=8), model.stat().st_size)]
    for name, path in (("tensorrt float32", model), ("tensorrt half", half)):
        file = build(path, SPEC).engine
        subjects.append(Subject(name, lambda file=file: TensorRTEngine(file), len(file)))
    made = bench(subjects, SHAPES, Effort(5.0, 5, 1000))
    for rows in (to_rows(made), to_split_rows(made), to_memory_rows(made)):
        print("\n".join("  ".join(f"{cell:>18}" for cell in row) for row in rows), end="\n\n")
    print(summarize(made))
    return made


def test_nothing_fails_and_outputs_are_near_the_reference(report):
    assert not report.errors
    for result in report.results[1:]:
        for one in result.measurements:
            assert one.difference.rms_over_std < 0.02


def test_the_parts_of_a_call_are_measured_and_fit_into_it(report):
    for result in report.results[1:]:
        for one in result.measurements:
            assert min(one.split.h2d_seconds, one.split.compute_seconds, one.split.d2h_seconds) > 0
            assert one.split.latency_seconds < 2 * one.laps.p50
            assert one.split_laps > 0


def test_larger_batches_take_longer_in_every_part(report):
    for result in report.results[1:]:
        small, large = (result.at(shape).split for shape in SHAPES)
        assert large.h2d_seconds > small.h2d_seconds
        assert large.compute_seconds > small.compute_seconds


def test_memory_of_the_gpu_is_seen(report):
    for result in report.results[1:]:
        assert result.memory.device_bytes > 0
        assert result.memory.activation_bytes > 0


def test_the_environment_names_the_gpu_and_tensorrt(report):
    told = report.environment.describe()
    assert report.environment.gpu.name in told["GPU"]
    assert told["CUDA driver"]
    assert load_surface().flavour in told


def test_the_page_and_its_json_are_written(report, tmp_path):
    page, twin = write_report(tmp_path, report)
    assert "Where the time of a call goes" in page.read_text()
    assert from_json(twin.read_text()) == report
