"""A model package is checked before anything of it runs: each test is one way to break it, and the refusal."""

import os
from datetime import timedelta

import numpy as np
import onnx
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, external_data_helper, helper, numpy_helper

from engines.base import ModelError
from engines.graph import data_dependent, digests
from engines.model import Contract, load_package, read_contract


def refusal(folder) -> str:
    with pytest.raises(ModelError) as caught:
        load_package(folder)
    return str(caught.value)


def store_outside(model: onnx.ModelProto, location: str, **more: object) -> onnx.ModelProto:
    """The model with its first weight kept in the file `location`."""
    tensor = model.graph.initializer[0]
    external_data_helper.set_external_data(tensor, location, **more)
    tensor.ClearField("raw_data")
    return model


def first_weight(model: onnx.ModelProto) -> bytes:
    return model.graph.initializer[0].raw_data


def test_a_sound_package_is_loaded_with_its_contract(tmp_path, plain, package):
    loaded = load_package(package(tmp_path / "m", plain()))
    assert loaded.contract.output.leads == tuple(timedelta(minutes=m) for m in (5, 10, 15))
    assert loaded.identity.startswith("test-1.0-")


def test_weights_in_a_file_beside_the_model_are_welcome(tmp_path, plain, package):
    model = plain()
    folder = package(tmp_path / "m", store_outside(plain(), "w.bin"))
    (folder / "w.bin").write_bytes(first_weight(model))
    load_package(folder)


# files


def test_a_missing_model_is_named(tmp_path, plain, package):
    folder = package(tmp_path / "m", plain())
    (folder / "model.onnx").unlink()
    assert f"{folder} has no file 'model.onnx'" in refusal(folder)


def test_a_missing_contract_is_named(tmp_path, plain, package):
    folder = package(tmp_path / "m", plain())
    (folder / "model.yaml").unlink()
    assert "has no file 'model.yaml'" in refusal(folder)


@settings(max_examples=40, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_model_is_refused_wherever_it_was_cut(tmp_path_factory, plain, package, share):
    folder = package(tmp_path_factory.mktemp("m"), plain())
    whole = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(whole[: int(share * len(whole))])
    assert "model.onnx" in refusal(folder)


def test_any_other_file_is_no_model(tmp_path, plain, package):
    folder = package(tmp_path / "m", plain())
    (folder / "model.onnx").write_bytes(b"PK\x03\x04 a zip file, perhaps")
    assert "is no ONNX file or is truncated" in refusal(folder)


@pytest.mark.parametrize("name", ["model.onnx", "model.yaml"])
def test_a_file_that_is_a_link_out_of_the_folder_is_not_opened(tmp_path, plain, package, name):
    folder = package(tmp_path / "m", plain())
    (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    assert "leads outside the model package" in refusal(folder)


# weights in other files


@pytest.mark.parametrize("location", ["../w.bin", "a/../../w.bin", "link.bin", "linked/w.bin", "/absolute"])
def test_weights_outside_the_folder_are_not_opened(tmp_path, plain, package, monkeypatch, location):
    (tmp_path / "w.bin").write_bytes(first_weight(plain()))
    where = str(tmp_path / "w.bin") if location == "/absolute" else location
    folder = package(tmp_path / "m", store_outside(plain(), where))
    (folder / "a").mkdir()
    (folder / "link.bin").symlink_to(tmp_path / "w.bin")
    (folder / "linked").symlink_to(tmp_path)
    monkeypatch.setattr(onnx.checker, "check_model", lambda *_, **__: pytest.fail("the checker opens weights itself"))
    assert f"{where!r} leads outside the model package {folder}" in refusal(folder)


def test_an_absolute_path_is_refused_even_if_it_leads_back_inside(tmp_path, plain, package):
    model = plain()
    folder = package(tmp_path / "m", store_outside(plain(), str(tmp_path / "m" / "w.bin")))
    (folder / "w.bin").write_bytes(first_weight(model))
    assert "leads outside" in refusal(folder)


def test_a_path_is_found_out_wherever_in_the_graph_it_hides(tmp_path, net_type, package):
    net = net_type(2)
    hidden = numpy_helper.from_array(np.ones((1, 3, 1, 1), np.float32), "hidden")
    inner = helper.make_tensor_value_info("inner", TensorProto.FLOAT, [1, 3, 1, 1])
    body = helper.make_graph([helper.make_node("Constant", [], ["inner"], value=hidden)], "body", [], [inner])
    chosen = net.op("If", net.constant(True, "bool"), then_branch=body, else_branch=body)
    model = net.model(net.op("Add", net.conv("x", 2, 3), chosen), 3)
    package(tmp_path / "m", model)
    load_package(tmp_path / "m")
    branch = next(node for node in model.graph.node if node.op_type == "If").attribute[0].g
    external_data_helper.set_external_data(branch.node[0].attribute[0].t, "../../etc/passwd")
    assert "'../../etc/passwd' leads outside" in refusal(package(tmp_path / "m", model))


def test_missing_weights_are_named(tmp_path, plain, package):
    assert "has no file 'w.bin'" in refusal(package(tmp_path / "m", store_outside(plain(), "w.bin")))


@pytest.mark.parametrize("location", ["", ".", "w\0.bin", "w" * 5000, "loop"])
def test_a_location_that_names_no_file_is_refused(tmp_path, plain, package, location):
    folder = package(tmp_path / "m", store_outside(plain(), location))
    (folder / "loop").symlink_to(folder / "loop")
    assert "model package" in refusal(folder)


@pytest.mark.parametrize(("offset", "length"), [(0, 4000), (4096, 216), (-4, 216), (0, -4)])
def test_truncated_weights_are_refused(tmp_path, plain, package, offset, length):
    folder = package(tmp_path / "m", store_outside(plain(), "w.bin", offset=offset, length=length))
    (folder / "w.bin").write_bytes(first_weight(plain()))
    assert f"needs bytes {offset} to {offset + length}" in refusal(folder)


def test_an_offset_that_is_no_number_is_refused(tmp_path, plain, package):
    folder = package(tmp_path / "m", store_outside(plain(), "w.bin", offset=0))
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    next(entry for entry in model.graph.initializer[0].external_data if entry.key == "offset").value = "here"
    package(folder, model)
    (folder / "w.bin").write_bytes(first_weight(plain()))
    assert "'here'" in refusal(folder)


# the graph


def test_an_operator_that_does_not_exist_is_named(tmp_path, net_type, package):
    net = net_type(2)
    y = net.op("Sharpen", net.conv("x", 2, 3))
    assert "No Op registered for Sharpen" in refusal(package(tmp_path / "m", net.model(y, 3)))


@pytest.mark.parametrize("where", ["graph", "branch"])
def test_an_operator_of_a_foreign_domain_is_refused(tmp_path, net_type, package, where):
    net, y = net_type(2), "y"
    if where == "graph":
        y = net.op("Sharpen", net.conv("x", 2, 3), domain="com.example")
    else:
        out = helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)
        body = helper.make_graph([helper.make_node("Own", ["x"], ["inner"], domain="com.example")], "b", [], [out])
        y = net.op("If", net.constant(True, "bool"), then_branch=body, else_branch=body)
    model = net.model(y, 3)
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    assert "operators of ['com.example']" in refusal(package(tmp_path / "m", model))


@pytest.mark.parametrize("kind", ["RandomNormalLike", "RandomUniformLike", "Bernoulli"])
def test_a_graph_that_draws_random_numbers_is_refused(tmp_path, net_type, package, kind):
    net = net_type(2)
    y = net.op("Add", net.conv("x", 2, 3), net.op(kind, net.conv("x", 2, 3)))
    assert f"draws random numbers ({kind})" in refusal(package(tmp_path / "m", net.model(y, 3)))


@pytest.mark.parametrize("is_constant_node", [False, True])
@pytest.mark.parametrize("is_training", [False, True])
def test_a_dropout_left_in_training_mode_is_refused(tmp_path, net_type, package, is_training, is_constant_node):
    net = net_type(2)
    mode = net.constant(is_training, "bool")
    if is_constant_node:
        mode = net.op("Constant", value=net.weights.pop())
    model = net.model(net.op("Dropout", net.conv("x", 2, 3), net.constant(0.5), mode), 3)
    folder = package(tmp_path / "m", model)
    if is_training:
        assert "is in training mode, or no constant says that it is not" in refusal(folder)
    else:
        load_package(folder)


def test_a_dropout_whose_mode_is_left_out_is_at_rest(tmp_path, net_type, package):
    net = net_type(2)
    y = net.op("Dropout", net.conv("x", 2, 3), net.constant(0.5), "")
    load_package(package(tmp_path / "m", net.model(y, 3)))


def test_a_constant_that_makes_nothing_is_a_refusal_of_the_checker(tmp_path, net_type, package):
    net = net_type(2)
    model = net.model(net.conv("x", 2, 3), 3)
    model.graph.node.append(helper.make_node("Constant", [], [], value=helper.make_tensor("v", 1, [], [0])))
    assert "fails the ONNX checker" in refusal(package(tmp_path / "m", model))


@pytest.mark.parametrize("training_mode", [0, 1])
def test_a_normalization_left_in_training_mode_is_refused(tmp_path, net_type, package, training_mode):
    net = net_type(2)
    given = [net.constant(np.full(3, value)) for value in (1, 0, 0, 1)]
    y = net.op("BatchNormalization", net.conv("x", 2, 3), *given, training_mode=training_mode)
    net.nodes[-1].output.extend(["mean", "variance"] if training_mode else [])
    folder = package(tmp_path / "m", net.model(y, 3))
    if training_mode:
        assert "BatchNormalization 'n1' is in training mode" in refusal(folder)
    else:
        load_package(folder)


def test_tensors_that_do_not_fit_each_other_are_refused(tmp_path, net_type, package):
    net = net_type(2)
    model = net.model(net.op("Add", net.conv("x", 2, 3), net.conv("x", 2, 4)), 3)
    assert "fails the ONNX checker" in refusal(package(tmp_path / "m", model))


def spoiled(model: onnx.ModelProto, value: float) -> onnx.ModelProto:
    """The model with one number of its first weight replaced."""
    weights = numpy_helper.to_array(model.graph.initializer[0]).copy()
    weights.flat[-1] = value
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights, model.graph.initializer[0].name))
    return model


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("is_outside", [True, False])
def test_a_weight_that_is_no_number_is_refused(tmp_path, plain, package, value, is_outside):
    model = spoiled(plain(), value)
    contents = first_weight(model)
    folder = package(tmp_path / "m", store_outside(model, "w.bin") if is_outside else model)
    (folder / "w.bin").write_bytes(contents)
    assert "weight 'w0' holds NaN or infinity" in refusal(folder)


def test_a_constant_that_stands_for_missing_may_be_nan(tmp_path, net_type, package):
    net = net_type(2)
    y = net.conv("x", 2, 3)
    y = net.op("Where", net.op("Less", y, net.constant(0.0)), net.constant(np.nan), y)
    load_package(package(tmp_path / "m", net.model(y, 3)))


def test_a_second_input_is_refused(tmp_path, plain, package):
    model = plain()
    model.graph.input.append(helper.make_tensor_value_info("extra", TensorProto.FLOAT, [1]))
    found = refusal(package(tmp_path / "m", model))
    assert f"has 2 input(s) and 1 output(s): x, extra to {model.graph.output[0].name}; expected one of each" in found


def test_a_second_output_is_refused(tmp_path, net_type, package):
    net = net_type(2)
    extra = net.relu("x")
    model = net.model(net.conv("x", 2, 3), 3)
    model.graph.output.append(helper.make_tensor_value_info(extra, TensorProto.FLOAT, ["n", 2, "h", "w"]))
    assert "has 1 input(s) and 2 output(s)" in refusal(package(tmp_path / "m", model))


def test_weights_listed_as_inputs_are_no_inputs(tmp_path, plain, package):
    model = plain()
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    load_package(package(tmp_path / "m", model))


def test_tensors_that_are_no_float32_are_refused(tmp_path, net_type, package):
    net = net_type(2)
    model = net.model(net.conv(net.op("Cast", "x", to=TensorProto.FLOAT), 2, 3), 3)
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    assert "x is UINT8 with 4 axes; expected FLOAT with 4" in refusal(package(tmp_path / "m", model))


def test_a_tensor_without_four_axes_is_refused(tmp_path, net_type, package):
    net = net_type(2)
    y = net.op("ReduceMean", net.conv("x", 2, 3), axes=[3], keepdims=0)
    model = net.model(y, 3)
    del model.graph.output[0].type.tensor_type.shape.dim[3]
    assert "is FLOAT with 3 axes; expected FLOAT with 4" in refusal(package(tmp_path / "m", model))


def test_frames_that_do_not_match_the_contract_are_refused(tmp_path, net_type, package):
    net = net_type(5)
    folder = package(tmp_path / "m", net.model(net.conv("x", 5, 3), 3))
    assert "x has 5 planes, but input.frames of model.yaml gives 2" in refusal(folder)


def test_lead_times_that_do_not_match_the_model_are_refused(tmp_path, net_type, package):
    net = net_type(2)
    folder = package(tmp_path / "m", net.model(net.conv("x", 2, 7), 7))
    assert "has 7 planes, but output.lead_times of model.yaml gives 3" in refusal(folder)


@pytest.mark.parametrize("side", ["input", "output"])
@pytest.mark.parametrize("edge", ["h", 64])
def test_a_model_with_its_planes_last_is_refused(tmp_path, net_type, package, side, edge):
    net = net_type(2)
    x = net.op("Transpose", "x", perm=[0, 3, 1, 2]) if side == "input" else "x"
    y = net.conv(x, 2, 3)
    y = net.op("Transpose", y, perm=[0, 2, 3, 1]) if side == "output" else y
    model = net.model(y, 3)
    value, planes = (model.graph.input[0], 2) if side == "input" else (model.graph.output[0], 3)
    value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.FLOAT, ["n", edge, edge, planes]))
    assert f"{value.name} has its {planes} planes on the last axis" in refusal(package(tmp_path / "m", model))


@pytest.mark.parametrize("size", [("h", 64), (64, "w")])
def test_a_model_of_one_dynamic_edge_is_refused(tmp_path, net_type, package, size):
    net = net_type(2)
    model = net.model(net.conv("x", 2, 3), 3, size=size)
    assert "expected h and w both dynamic or both fixed" in refusal(package(tmp_path / "m", model))


def test_a_model_that_changes_the_size_is_refused(tmp_path, net_type, package):
    net = net_type(2)
    model = net.model(net.pool(net.conv("x", 2, 3)), 3, size=(64, 64))
    for axis in (2, 3):
        model.graph.output[0].type.tensor_type.shape.dim[axis].dim_value = 32
    assert "turns tiles of [64, 64] cells into [32, 32]" in refusal(package(tmp_path / "m", model))


# reach


def sampler(net):
    """Samples the first channel where the second says."""
    grid = net.op("Transpose", net.conv("x", 2, 2), perm=[0, 2, 3, 1])
    return net.conv(net.op("GridSample", "x", grid), 2, 3)


def test_a_sampler_without_a_declared_radius_is_refused(tmp_path, net_type, package):
    net = net_type(2)
    model = net.model(sampler(net), 3)
    assert "declares no tile.radius, and GridSample moves data" in refusal(package(tmp_path / "m", model))
    for radius in (32, "global"):
        load_package(package(tmp_path / "m", model, tile={"radius": radius}))


@pytest.mark.parametrize("tile", [{}, {"radius": 32}, {"radius": 32, "stride": 2}])
def test_a_model_that_aligns_the_corners_of_its_tile_must_see_whole_frames(tmp_path, net_type, package, tile):
    net = net_type(2)
    y = net.grow(net.pool(net.conv("x", 2, 3)), mode="linear")
    (mode,) = (a for a in net.nodes[-1].attribute if a.name == "coordinate_transformation_mode")
    mode.s = b"align_corners"
    y = net.conv(y, 3, 3)
    assert "Resize 'n2' aligns the corners" in refusal(package(tmp_path / "m", net.model(y, 3), tile=tile))
    load_package(package(tmp_path / "m", net.model(y, 3), tile={"radius": "global"}))


def test_sampling_at_fixed_places_needs_no_declared_radius(net_type):
    net = net_type(2)
    net.op("GridSample", "x", net.constant(np.zeros((1, 8, 8, 2))))
    assert data_dependent(net.model("v0", 2).graph) == set()


def test_indices_computed_from_the_shape_need_no_declared_radius(net_type):
    net = net_type(2)
    height = net.op("Gather", net.op("Shape", "x"), net.constant(2, "int64"))
    net.op("Slice", "x", net.constant([0], "int64"), net.op("Reshape", height, net.constant([1], "int64")))
    assert data_dependent(net.model("v0", 2).graph) == set()


def test_indices_computed_from_values_need_a_declared_radius(net_type):
    net = net_type(2)
    net.op("Gather", "x", net.op("ArgMax", "x", axis=3), axis=3)
    assert data_dependent(net.model("v1", 2).graph) == {"Gather"}


# identity


def test_new_weights_change_the_weights_digest_alone(tmp_path, plain):
    one, other = plain(), plain()
    changed = numpy_helper.to_array(other.graph.initializer[0]) + 1
    other.graph.initializer[0].CopyFrom(numpy_helper.from_array(changed, other.graph.initializer[0].name))
    (graph, weights), (graph2, weights2) = digests(one, tmp_path), digests(other, tmp_path)
    assert graph == graph2
    assert weights != weights2


def test_a_new_operator_changes_the_graph_digest_alone(tmp_path, net_type):
    def build(kind):
        net = net_type(2)
        return net.model(net.op(kind, net.conv("x", 2, 3)), 3)

    (graph, weights), (graph2, weights2) = (digests(build(kind), tmp_path) for kind in ("Relu", "Tanh"))
    assert graph != graph2
    assert weights == weights2


def test_a_new_shape_constant_changes_the_graph_digest(tmp_path, net_type):
    def build(rows):
        net = net_type(2)
        return net.model(net.op("Slice", "x", net.constant([0], "int64"), net.constant([rows], "int64")), 3)

    (graph, weights), (graph2, weights2) = (digests(build(rows), tmp_path) for rows in (8, 9))
    assert graph != graph2
    assert weights == weights2


def test_the_digests_do_not_depend_on_where_or_how_weights_are_stored(tmp_path, net_type, package):
    net = net_type(2)
    shape = net.constant([0, 3, -1, 16], "int64")
    model = net.model(net.op("Reshape", net.conv("x", 2, 3), shape), 3)
    expected = load_package(package(tmp_path / "m", model))
    onnx.save(model, tmp_path / "m" / "model.onnx", save_as_external_data=True, location="w.bin", size_threshold=100)
    assert (tmp_path / "m" / "w.bin").stat().st_size > 0
    moved = load_package(tmp_path / "m")
    typed = net.model(net.nodes[-1].output[0], 3)
    for tensor in typed.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.float_data[:] = numpy_helper.to_array(tensor).ravel().tolist()
            tensor.ClearField("raw_data")
    for found in (moved, load_package(package(tmp_path / "t", typed))):
        assert (found.graph_sha256, found.weights_sha256) == (expected.graph_sha256, expected.weights_sha256)


# the contract


def test_all_problems_of_a_contract_are_listed_at_once(tmp_path, plain, package):
    problems = {
        "colour": "blue",
        "version": 1.0,
        "input": {"standard_name": "rain", "frames": 3, "missing": "none"},
        "output": {"standard_name": "rain", "units": "mm h-1", "lead_times": ["5min", "soon"], "coverage": "some"},
        "tile": {"stride": 0, "radius": -1},
    }
    message = refusal(package(tmp_path / "m", plain(), **problems))
    assert f"9 problem(s) in {tmp_path / 'm' / 'model.yaml'}" in message
    for line in (
        "colour: unknown key",
        'version: must be text (found 1.0); put it in quotes, such as "1.0"',
        "input.units: is missing",
        "input.missing: Input should be a valid number",
        "output.lead_times.1: is no duration; write a number with s, min, h or d, such as 5min (found 'soon')",
        "output.coverage: Input should be 'model' or 'input' (found 'some')",
        "tile.stride: Input should be greater than or equal to 1 (found 0)",
        "tile.radius: Input should be greater than or equal to 0 (found -1)",
        "tile.radius: Input should be 'global' (found -1)",
    ):
        assert line in message


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("lead_times", 5, "output.lead_times"),
        ("lead_times", [], "at least 1 item"),
        ("lead_times", [5, 10, 15], "output.lead_times.0: is no duration"),
        ("lead_times", ["0min", "5min", "10min"], "output.lead_times.0: must be longer than 0min"),
        ("lead_times", ["-5min", "5min", "10min"], "output.lead_times.0: is no duration"),
        ("lead_times", ["10min", "5min", "15min"], "lead times must rise"),
        ("lead_times", {"step": "5 weeks", "count": 3}, "output.lead_times.step: is no duration"),
        ("lead_times", {"step": "5min", "count": 0}, "output.lead_times.count"),
        ("lead_times", {"step": "5min"}, "output.lead_times.count: is missing"),
    ],
)
def test_bad_lead_times_are_refused(tmp_path, plain, package, key, value, message):
    output = {"standard_name": "rain", "units": "mm h-1", key: value}
    assert message in refusal(package(tmp_path / "m", plain(), output=output))


@pytest.mark.parametrize(
    ("chain", "message"),
    [
        ([], "input.transform: Tuple should have at least 1 item"),
        ("log10", "input.transform.0: Input should be a valid dictionary"),
        ([{"name": "clip"}, "log1p"], "input.transform.1: Input should be a valid dictionary"),
        ([{"name": "clip"}, {"name": 3}], "input.transform.1.name: must be text (found 3)"),
        (None, "input.transform.0: Input should be a valid dictionary"),
    ],
)
def test_a_chain_that_is_no_list_of_transforms_is_refused(tmp_path, plain, package, chain, message):
    given_ = {"standard_name": "rain", "units": "mm h-1", "frames": 1, "transform": chain}
    assert message in refusal(package(tmp_path / "m", plain(), input=given_))


@pytest.mark.parametrize("transform", [{"name": "log1p"}, [{"name": "clip", "minimum": 0}, {"name": "log1p"}]])
def test_one_transform_and_several_are_written_as_they_were_read(tmp_path, plain, package, transform):
    given_ = {"standard_name": "rain", "units": "mm h-1", "frames": 2, "cadence": "5min", "transform": transform}
    contract = load_package(package(tmp_path / "m", plain(), input=given_)).contract
    assert contract.model_dump(mode="json")["input"]["transform"] == transform
    chain = [step.model_dump() for step in contract.input.transform]
    assert chain == (transform if isinstance(transform, list) else [transform])


def test_several_frames_without_a_cadence_are_refused(tmp_path, plain, package):
    given_ = {"standard_name": "rain", "units": "mm h-1", "frames": 2}
    assert "input: 2 frames need a cadence" in refusal(package(tmp_path / "m", plain(), input=given_))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"name: [unclosed", "is not YAML"),
        (b"name: \xff\xfe", "is not YAML"),
        (b"name: 2016-13-45", "is not YAML"),
        (b"[" * 5000, "is not YAML"),
        (b"", "valid dictionary"),
        (b"- a list", "valid dictionary"),
        (b"name: !!python/object/apply:os.system [true]", "is not YAML"),
    ],
)
def test_an_unreadable_contract_is_refused(tmp_path, plain, package, text, message):
    folder = package(tmp_path / "m", plain())
    (folder / "model.yaml").write_bytes(text)
    assert message in refusal(folder)


def test_a_contract_without_permission_is_refused(tmp_path, plain, package):
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    folder = package(tmp_path / "m", plain())
    (folder / "model.yaml").chmod(0)
    assert "cannot read the model contract" in refusal(folder)


def test_a_contract_that_unfolds_to_gigabytes_is_refused_in_a_short_message(tmp_path):
    levels = [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 12)]
    (tmp_path / "model.yaml").write_text("l0: &l0 [a]\n" + "\n".join(levels) + "\nname: *l11\n")
    with pytest.raises(ModelError) as caught:
        read_contract(tmp_path / "model.yaml")
    assert len(str(caught.value)) < 5000


@settings(max_examples=30)
@given(step=st.integers(1, 90), count=st.integers(1, 40), unit=st.sampled_from(["s", "min", "h"]))
def test_a_contract_survives_writing_and_reading(step, count, unit):
    tree = {
        "name": "m",
        "version": "1",
        "licence": "x",
        "input": {"standard_name": "r", "units": "1", "frames": 2, "cadence": f"{step}{unit}"},
        "output": {"standard_name": "r", "units": "1", "lead_times": {"step": f"{step}{unit}", "count": count}},
    }
    contract = Contract.model_validate(tree)
    assert Contract.model_validate(yaml.safe_load(yaml.safe_dump(contract.model_dump(mode="json")))) == contract
    assert len(contract.output.leads) == count
