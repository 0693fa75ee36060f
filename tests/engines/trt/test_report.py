"""The precision obtained, read from the engine inspector in the words of all releases."""

import json

import pytest

from engines.trt.report import BuildReport, count_engine_layers


def layer(given, returned=()):
    tensors = [[{"Name": "t", "Format/Datatype": text} for text in side] for side in (given, returned)]
    return {"Name": "l", "Inputs": tensors[0], "Outputs": tensors[1]}


@pytest.mark.parametrize(
    ("given", "returned", "kind"),
    [
        (["Row major linear FP32"], ["Row major linear FP32"], "float32"),
        (["Row major linear FP16 format"], ["Row major linear FP32"], "float16"),
        (["Channel major FP16 format where channel % 8 == 0"], [], "float16"),
        (["Thirty-two wide channel vectorized row major Int8 format"], [], "int8"),
        (["Half", "Float"], ["Half"], "float16"),
        (["Float"], ["Float"], "float32"),
        (["UInt8"], ["Float"], "uint8"),
        (["BFloat16"], [], "bfloat16"),
        (["Int64"], [], "int64"),
        ([], ["Row major linear FP32"], "float32"),
        (["N/A due to dynamic shapes"], [], "unknown"),
        ([], [], "unknown"),
    ],
)
def test_a_layer_counts_as_what_it_computes_in(given, returned, kind):
    assert count_engine_layers(json.dumps({"Layers": [layer(given, returned)]})) == {kind: 1}


def test_layers_without_details_are_unknown_and_the_most_frequent_come_first():
    layers = ["only a name", layer(["FP16"]), layer(["FP16"])]
    assert list(count_engine_layers(json.dumps({"Layers": layers})).items()) == [("float16", 2), ("unknown", 1)]


def test_a_report_survives_json():
    report = BuildReport("tensorrt 8.6.1", 1.5, 10, ("FP16",), {"float32": 2}, None, False, ("slow",))
    assert BuildReport.from_json(json.loads(json.dumps(report.to_json()))) == report
