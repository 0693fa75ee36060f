"""What a model asks of its tiles is measured once; whatever it comes from makes it be measured again."""

import json

import onnx
import pytest
import yaml

import jobs.needs
from engines.base import ModelError
from engines.model import load_package
from jobs.needs import measure_needs, needs_on, tile_needs
from jobs.prepare import load
from pipelines.product import TilingSpec


@pytest.fixture
def folder(product, tmp_path, monkeypatch):
    """A model that does not declare its radius, and a cache of its own."""
    found = load(product, []).package.folder
    monkeypatch.setenv("SQUALL_CACHE", str(tmp_path / "cache"))
    contract = yaml.safe_load((found / "model.yaml").read_text())
    contract["tile"] = {}
    (found / "model.yaml").write_text(yaml.safe_dump(contract))
    return found


@pytest.fixture
def count(monkeypatch):
    """How often something was measured."""
    calls = []
    monkeypatch.setattr(jobs.needs, "measure_needs", lambda package: calls.append(1) or measure_needs(package))
    return calls


def test_the_second_time_nothing_is_measured(folder, count):
    package = load_package(folder)
    first = tile_needs(package)
    assert tile_needs(package) == first == measure_needs(package)
    assert len(count) == 1


def test_another_rule_of_the_contract_is_measured_anew(folder, count):
    tile_needs(load_package(folder))
    contract = yaml.safe_load((folder / "model.yaml").read_text())
    contract["tile"] = {"stride": 4, "radius": 40}
    (folder / "model.yaml").write_text(yaml.safe_dump(contract))
    needs = tile_needs(load_package(folder))
    assert (needs.stride, needs.radius) == (4, 40)
    assert len(count) == 2


def test_what_another_probe_has_found_is_measured_anew(folder, count, monkeypatch):
    tile_needs(load_package(folder))
    monkeypatch.setattr(jobs.needs, "PROBE_VERSION", "another")
    tile_needs(load_package(folder))
    assert len(count) == 2


def test_with_a_declared_stride_only_the_radius_is_measured(folder):
    contract = yaml.safe_load((folder / "model.yaml").read_text())
    contract["tile"] = {"stride": 14}
    (folder / "model.yaml").write_text(yaml.safe_dump(contract))
    needs = measure_needs(load_package(folder))
    assert (needs.stride, needs.radius) == (14, 4)


def test_a_model_exported_for_one_tile_takes_no_larger_batch(folder):
    graph = onnx.load(folder / "model.onnx")
    for port in (*graph.graph.input, *graph.graph.output):
        port.type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(graph, folder / "model.onnx")
    assert tile_needs(load_package(folder)) == tile_needs(load_package(folder))  # the second time from the disk
    assert tile_needs(load_package(folder)).batch == 1


def test_a_model_whose_tiles_mix_in_a_batch_gets_them_one_by_one(folder):
    assert measure_needs(load_package(folder)).batch is None
    model = onnx.load(folder / "model.onnx")
    (given,) = (port.name for port in model.graph.input)
    for node in model.graph.node:
        node.input[:] = ["centred" if name == given else name for name in node.input]
    mean = onnx.helper.make_node("ReduceMean", [given], ["mean"], axes=[0], keepdims=1)
    model.graph.node.insert(0, onnx.helper.make_node("Sub", [given, "mean"], ["centred"]))
    model.graph.node.insert(0, mean)
    onnx.save(model, folder / "model.onnx")
    assert measure_needs(load_package(folder)).batch == 1


def test_batches_of_tiles_that_fill_a_gpu_alone_are_not_tried(folder, monkeypatch):
    monkeypatch.setattr(jobs.needs, "takes_batches", lambda *given: False)
    assert measure_needs(load_package(folder)).batch == 1
    monkeypatch.setattr(jobs.needs, "FULL_CELLS", 256 * 256)  # a tile of about as many
    assert measure_needs(load_package(folder)).batch is None


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"radius": 1}), json.dumps({"size": None, "wrong": 1})])
def test_a_damaged_file_is_measured_anew(folder, count, content, tmp_path):
    package = load_package(folder)
    needs = tile_needs(package)
    (file,) = (tmp_path / "cache" / "needs").iterdir()
    file.write_text(content)
    assert tile_needs(package) == needs
    assert len(count) == 2


def test_a_cache_that_cannot_be_written_costs_time_only(folder, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SQUALL_CACHE", str(tmp_path / "file"))
    assert tile_needs(load_package(folder)) == measure_needs(load_package(folder))


def test_a_model_that_cannot_run_is_not_remembered_as_fit(folder, count, monkeypatch, tmp_path):
    def refuse(package):
        raise ModelError("no such operator")

    monkeypatch.setattr(jobs.needs, "measure_needs", refuse)
    with pytest.raises(ModelError, match="no such operator"):
        tile_needs(load_package(folder))
    assert not (tmp_path / "cache" / "needs").exists()


def look_along_rows(folder):
    """The model looks from each cell at all of its row, so that memory grows with the width, too."""
    model = onnx.load(folder / "model.onnx")
    (old,) = (value.name for value in model.graph.output)
    for node in model.graph.node:
        node.output[:] = ["seen" if name == old else name for name in node.output]
    model.graph.node.extend(
        [
            onnx.helper.make_node("Transpose", ["seen"], ["turned"], perm=[0, 1, 3, 2]),
            onnx.helper.make_node("MatMul", ["turned", "seen"], ["pairs"]),
            onnx.helper.make_node("MatMul", ["seen", "pairs"], [old]),
        ]
    )
    onnx.save(model, folder / "model.onnx")


def test_the_memory_of_a_model_that_looks_everywhere_is_that_of_the_whole_frame(folder):
    look_along_rows(folder)
    package = load_package(folder)
    small = tile_needs(package)
    assert small.radius is None
    assert needs_on(package, (300, 2560), TilingSpec()).bytes_per_cell > 2 * small.bytes_per_cell
    assert needs_on(package, (300, 2560), TilingSpec(mode="feather", tile=(256, 256))) == small


def test_the_memory_of_a_model_with_a_radius_is_that_of_any_tile(folder):
    assert needs_on(load_package(folder), (300, 2560), TilingSpec()) == tile_needs(load_package(folder))


def test_the_memory_of_a_frame_is_measured_once(folder, monkeypatch):
    look_along_rows(folder)
    first = needs_on(load_package(folder), (300, 2560), TilingSpec())
    monkeypatch.setattr(jobs.needs, "bytes_per_cell", lambda *args: -1.0)
    assert needs_on(load_package(folder), (300, 2560), TilingSpec()) == first
    assert needs_on(load_package(folder), (300, 1280), TilingSpec()).bytes_per_cell == -1
