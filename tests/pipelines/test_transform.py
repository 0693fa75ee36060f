"""Codes to model space and back: nothing is lost but half a code, and missing is never dry."""

import threading
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipelines.encoding import Encoding
from pipelines.errors import ConfigError
from pipelines.model_space import ModelSpace, make_space
from pipelines.product import InputSpec, OutputSpec, Packing
from pipelines.transform import (
    Decoder,
    Encoder,
    ModelNeeds,
    input_quantity,
    make_decoder,
    make_encoder,
    output_quantity,
)
from pipelines.units import Linear, Quantity, convert_units

FMI = Encoding(
    "int16", -32768, (-32768,), 0.5, 0.0, "dBZ", "equivalent_reflectivity_factor", no_echo_value=-32.0, zr=(223.0, 1.53)
)
MRMS = Encoding("int16", -32768, (-32768,), 0.1, 0.0, "mm h-1", "rainfall_rate", no_echo_value=0.0)
RAIN = Quantity("lwe_precipitation_rate", "mm h-1")
NEEDS = ModelNeeds(
    "advection",
    "1.0",
    3,
    timedelta(minutes=5),
    RAIN,
    ModelSpace(missing=-1.0),
    (),
    RAIN,
    ModelSpace(missing_below=-0.5),
)

SPACES = {
    "identity": [],
    "log10": {"name": "log10", "threshold": 0.1, "zero": -2.0},
    "log10 with offset": {"name": "log10", "offset": 0.01},
    "log": {"name": "log", "threshold": 0.1, "zero": -3.0},
    "log1p": {"name": "log1p"},
    "db": {"name": "db", "threshold": 0.1, "zero": -15.0},
    "clip": {"name": "clip", "minimum": 0.0, "maximum": 400.0},
    "standardise": {"name": "standardise", "mean": 3.0, "std": 12.5},
    "two steps": [{"name": "dbr", "threshold": 0.1, "zero": -15.0}, {"name": "standardise", "mean": -5.0, "std": 10.0}],
    "log, standardise": [{"name": "log", "threshold": 0.1, "zero": -3}, {"name": "standardise", "mean": 0.7, "std": 3}],
    "clip, log1p": [{"name": "clip", "minimum": 0, "maximum": 400}, {"name": "log1p"}],
    "clip, log1p, standardise": [
        {"name": "clip", "minimum": 0, "maximum": 400},
        {"name": "log1p", "threshold": 0.1, "zero": 0},
        {"name": "standardise", "mean": 0.3, "std": 0.7},
    ],
    "standardise, log1p": [{"name": "standardise", "std": 20.0}, {"name": "log1p"}],
}
spaces = pytest.mark.parametrize("parts", SPACES.values(), ids=SPACES)
packings = st.builds(
    Packing, dtype=st.sampled_from(["int16", "uint16", "uint8"]), scale_factor=st.sampled_from([0.01, 0.1, 0.5])
)
rain = hnp.arrays(np.float32, (2, 5, 7), elements=st.floats(0, 300, width=32))


def unpack(codes, encoder):
    values = codes * np.float64(encoder.packing.scale_factor) + encoder.packing.add_offset
    return np.where(codes == encoder.fill, np.nan, values)


def encoded(values, encoder):
    out = np.empty(values.shape, encoder.dtype)
    encoder.encode(values, out)
    return out


@spaces
@given(values=hnp.arrays(np.float64, 20, elements=st.floats(0, 400)))
@settings(max_examples=40)
def test_undoing_a_transform_gives_the_values_back(parts, values):
    space = make_space(parts)
    there = values.copy()
    space.apply(there)
    back = there.astype(np.float32)
    space.undo(back)
    dry = values < 0.1 if "threshold" in str(parts) else np.zeros(20, bool)
    np.testing.assert_allclose(back, np.where(dry, 0, values), rtol=1e-5, atol=2e-5)


@given(
    kind=st.sampled_from(["log", "log10", "log1p", "db"]),
    threshold=st.floats(0.01, 10),
    depth=st.floats(0.01, 10),
    mean=st.floats(-30, 30),
    std=st.floats(0.01, 30),
    top=st.floats(300, 1000),
    values=hnp.arrays(np.float64, 20, elements=st.floats(0, 300)),
)
def test_through_a_chain_wet_comes_back_and_dry_stays_dry(kind, threshold, depth, mean, std, top, values):
    """To the last cell, also at the threshold itself, which many stores have a code for."""
    zero = {"log": np.log, "log1p": np.log1p}.get(kind, np.log10)(threshold) * (10 if kind == "db" else 1) - depth
    space = make_space(
        [
            {"name": "clip", "minimum": 0, "maximum": top},
            {"name": kind, "threshold": threshold, "zero": float(zero)},
            {"name": "standardise", "mean": mean, "std": std},
        ]
    )
    values[:2] = 0, threshold
    there = values.copy()
    space.apply(there)
    back = there.astype(np.float32)
    space.undo(back)
    dry = values < threshold
    assert (back[dry] == 0).all()
    assert (np.abs(back - values) <= float32_error(kind, values, mean))[~dry].all()


def float32_error(kind, values, mean):
    """How far a value may come back from a logarithm and a standardisation that are undone in float32.

    Each of eight roundings moves the logarithm by half a unit in the last place of a number no larger than itself and
    the mean together; what that is in the value is the slope of the exponential.
    """
    offset, slope = (1 if kind == "log1p" else 0), {"log10": np.log(10), "db": np.log(10) / 10}.get(kind, 1.0)
    logarithm = np.log(np.maximum(values, 1e-9) + offset) / slope
    return 4 * np.finfo(np.float32).eps * (1 + slope * (abs(mean) + np.abs(logarithm))) * (values + offset)


def test_the_natural_logarithms_are_those_of_the_textbook():
    values = np.array([0.0, 0.1, 1.0, 20.0])
    natural, plus_one = values.copy(), values.copy()
    make_space({"name": "log", "threshold": 0.1, "zero": -3}).apply(natural)
    make_space({"name": "log1p"}).apply(plus_one)
    np.testing.assert_allclose(natural, [-3, *np.log(values[1:])], rtol=1e-12)
    np.testing.assert_allclose(plus_one, np.log1p(values), rtol=1e-12)


def test_steps_are_applied_in_their_order():
    values = np.array([0.0, 5.0, 99.0])
    make_space([{"name": "clip", "maximum": 9}, {"name": "log1p"}, {"name": "standardise", "mean": 1, "std": 2}]).apply(
        values
    )
    np.testing.assert_allclose(values, (np.log1p([0, 5, 9]) - 1) / 2)


@spaces
def test_what_lies_below_the_dry_mark_is_one_value(parts):
    space = make_space(parts)
    below = np.array([-1e30, -100, -15, np.nextafter(space.dry_below, np.float32(-np.inf))], np.float32)
    below = below[below < space.dry_below]
    with np.errstate(over="ignore"):
        space.undo(below)
    assert len(np.unique(below)) <= 1


def test_a_chain_has_a_dry_mark_only_where_its_logarithm_is_last():
    log, clip, scale = {"name": "log1p"}, {"name": "clip", "minimum": 0}, {"name": "standardise", "std": 2}
    assert make_space([clip, log]).dry_below == make_space(log).dry_below > -1e-30
    for other in (scale, clip):
        assert make_space([log, other]).dry_below == -np.inf


@spaces
@given(values=hnp.arrays(np.float64, 20, elements=st.floats(0, 400)))
@settings(max_examples=40)
def test_transforms_keep_the_order_of_values(parts, values):
    space, ordered = make_space(parts), np.sort(values)
    space.apply(ordered)
    assert (np.diff(ordered) >= 0).all()
    back = ordered.astype(np.float32)
    space.undo(back)
    assert (np.diff(back) >= 0).all()


@spaces
def test_not_a_number_stays_so_both_ways(parts):
    values = np.array([np.nan, 1.0])
    make_space(parts).apply(values)
    assert np.isnan(values[0])
    assert not np.isnan(values[1])
    make_space(parts).undo(values)
    assert np.isnan(values[0])
    assert values[1] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"name": "sqrt"}, "'sqrt' .* expected one of identity, clip"),
        ({}, "'None' .* is not known"),
        ({"name": "identity", "scale": 2}, "is not known"),
        ({"name": "log10"}, "threshold 0 \\+ offset 0 has no logarithm"),
        ({"name": "log10", "threshold": 0.1}, "zero None does not lie below"),
        ({"name": "db", "threshold": 0.1, "zero": -9}, "zero -9 does not lie below the threshold 0.1, which is -10"),
        ({"name": "log10", "treshold": 0.1, "zero": -2}, "does not take \\['treshold', 'zero'\\]"),
        ({"name": "log10", "threshold": "low", "zero": -2}, "threshold='low'; expected numbers"),
        ({"name": "standardise", "std": 0}, "std is 0"),
        ({"name": "clip", "minimum": 3, "maximum": 3}, "leaves nothing"),
        ({"name": "log"}, "threshold 0 \\+ offset 0 has no logarithm"),
        ({"name": "log1p", "threshold": -1}, "threshold -1 \\+ offset 1 has no logarithm"),
        ({"name": "log1p", "offset": 2}, "'log1p' does not take \\['offset'\\]"),
        ({"name": "log", "threshold": 0.1, "zero": -2}, "zero -2 does not lie below .* which is -2.30259"),
        ({"name": "standardise", "mean": np.nan}, "mean=nan; expected numbers"),
        ({"name": "standardise", "mean": np.inf}, "mean is inf"),
        ([{"name": "clip", "minimum": 0}, {"name": "sqrt"}], "in clip -> sqrt: transform 'sqrt' .* expected one of"),
        ([{"name": "clip"}, {"name": "standardise", "std": 0}], "in clip -> standardise: mean is 0, std is 0"),
        ([{"name": "clip", "minimum": 0.1}, {"name": "log"}], "in clip -> log: threshold 0 \\+ offset 0"),
        (
            [{"name": "clip", "minimum": 0.1}, {"name": "log1p"}],
            "clip -> log1p: log1p gives 0 back for dry, .* make 0.1",
        ),
        ([{"name": "standardise", "mean": 3}, {"name": "log1p"}], "standardise -> log1p: log1p gives 0 .* make 3"),
        (
            [SPACES["log"], {"name": "log", "offset": 1}],
            "log -> log: log gives -2.30259 for its threshold 0.1, .* give back as 0",
        ),
        (
            [SPACES["log10"], {"name": "clip", "minimum": -1}],
            "log10 has the zero -2.0, which .* give back as -1; the thr",
        ),
        (
            [{"name": "log1p"}, {"name": "clip", "minimum": 0.5}],
            "log1p -> clip: log1p gives 0 for its .* give back as 0.5; expected",
        ),
        (
            [SPACES["log10"], {"name": "clip", "maximum": -1.5}],
            "log10 gives -1 for its threshold 0.1, .* give back as -1.5",
        ),
        (
            [SPACES["log10"], {"name": "standardise", "mean": 1e9}],
            "log10 gives -1 for its threshold 0.1, .* give back as 0;",
        ),
    ],
)
def test_a_transform_that_makes_no_sense_is_refused(parts, message):
    with pytest.raises(ConfigError, match=message):
        make_space(parts)


@spaces
@pytest.mark.parametrize(
    ("encoding", "is_zr"),
    [(FMI, True), (FMI, False), (MRMS, False), (Encoding("uint8", 255, (255,), 0.5, -32.0), False)],
)
def test_the_table_equals_the_computed_values_bit_for_bit(parts, encoding, is_zr):
    decoder = Decoder(encoding, make_space(parts, missing=-7.5), Linear(2.0, 0.25), is_zr)
    dtype = np.dtype(encoding.dtype)
    every_code = np.arange(np.iinfo(dtype).min, np.iinfo(dtype).max + 1).astype(dtype).reshape(1, 16, -1)
    np.testing.assert_array_equal(
        decoder.decode(every_code).view(np.uint32), decoder.compute(every_code).view(np.uint32)
    )


def test_floats_and_codes_of_the_same_values_decode_equal():
    space = make_space(SPACES["db"], missing=-20.0)
    codes = np.random.default_rng(0).integers(-100, 1500, (2, 9, 200)).astype(np.int16)
    codes[:, :3] = -32768
    floats = np.where(codes == -32768, np.nan, codes * np.float64(0.1))
    as_float = Decoder(Encoding("float64", np.nan), space).decode(floats)
    np.testing.assert_array_equal(Decoder(MRMS, space).decode(codes), as_float)


def test_reflectivity_becomes_rain_rate_by_the_relation_of_its_store():
    dbz = np.array([[[-32.0, 8.2, 23.5, 34.2, np.nan]]])
    codes = np.where(np.isnan(dbz), -32768, np.round(np.nan_to_num(dbz) * 2)).astype(np.int16)
    rate = Decoder(FMI, ModelSpace(missing=-1.0), is_zr=True).decode(codes)[0, 0]
    assert rate[0] == 0
    np.testing.assert_allclose(rate[1:4], (10 ** (codes[0, 0, 1:4] / 20) / 223) ** (1 / 1.53), rtol=1e-6)
    np.testing.assert_allclose(rate[1:4], [0.1, 1, 5], rtol=0.05)
    assert rate[4] == -1


def test_missing_is_given_as_the_number_that_the_model_wants():
    codes = np.array([[[-32768, 0, 10]]], np.int16)
    np.testing.assert_allclose(Decoder(MRMS, make_space([], -1.0)).decode(codes), [[[-1, 0, 1]]])
    assert np.isnan(Decoder(MRMS, make_space([], np.nan)).decode(codes)[0, 0, 0])


@given(shape=hnp.array_shapes(min_dims=3, max_dims=3, min_side=0, max_side=9), wide=st.booleans())
@settings(max_examples=40)
def test_decoding_does_not_depend_on_strides_or_blocks(shape, wide):
    random = np.random.default_rng(0)
    whole = random.integers(-32768, 32767, (shape[0], 2 * shape[1] + 1, (40_000 if wide else 3) + shape[2])).astype(
        np.int16
    )
    cut = whole[:, 1 : 1 + shape[1], 2:]
    out = np.zeros((shape[0], shape[1], cut.shape[2] + 5), np.float32)[:, :, 5:]
    Decoder(MRMS).decode(cut, out)
    np.testing.assert_array_equal(out, Decoder(MRMS).compute(cut))


@given(values=rain, packing=packings)
@settings(max_examples=60)
def test_packed_values_are_within_half_a_code(values, packing):
    encoder = Encoder(packing)
    codes = encoded(values, encoder)
    least, greatest = encoder.limits
    top = np.float32(greatest * packing.scale_factor)
    error = np.abs(unpack(codes, encoder) - np.minimum(values, top))
    assert (error <= packing.scale_factor * 0.5 + np.abs(values) * 2e-7).all()
    assert ((codes >= least) & (codes <= greatest)).all()


@given(values=hnp.arrays(np.float32, (1, 3, 50), elements=st.floats(width=32)), packing=packings)
@settings(max_examples=60)
def test_missing_is_the_fill_code_and_nothing_else_is(values, packing):
    encoder = Encoder(packing)
    np.testing.assert_array_equal(encoded(values, encoder) == encoder.fill, np.isnan(values))


@given(values=rain, packing=packings)
@settings(max_examples=30)
def test_packing_keeps_the_order_of_values(values, packing):
    codes = encoded(np.sort(values.ravel()).reshape(1, 1, -1), Encoder(packing))
    assert (np.diff(codes.astype(int)) >= 0).all()


@spaces
def test_model_output_comes_back_as_it_was_packed(parts):
    """Codes -> model space -> codes, at every code of the packing that is 0 or above the threshold."""
    encoder, space = Encoder(Packing(scale_factor=0.1), make_space(parts, missing=-30.0, missing_below=-25.0)), None
    space = encoder.space
    codes = np.arange(0, 4000, dtype=np.int16).reshape(1, 40, 100)
    codes[0, 7, 7] = -32768
    decoded = Decoder(MRMS, space).decode(codes)
    np.testing.assert_array_equal(encoded(decoded, encoder), codes)


def test_output_below_the_missing_mark_is_missing():
    values = np.array([[[-1.0, -0.51, -0.5, 0.0, np.nan]]], np.float32)
    encoder = Encoder(Packing(), ModelSpace(missing_below=-0.5))
    assert encoded(values, encoder).tolist() == [[[-32768, -32768, -50, 0, -32768]]]
    np.testing.assert_array_equal(np.isnan(encoder.mark_missing(values)), [[[True, True, False, False, True]]])
    assert Encoder(Packing()).mark_missing(values) is values


def test_halves_round_to_even_and_extremes_go_to_the_ends():
    values = np.array([[[0.5, 1.5, 2.5, -0.5, 1e30, -1e30, np.inf, -np.inf]]], np.float32)
    expected = [0, 2, 2, 0, 32767, -32767, 32767, -32767]
    assert encoded(values, Encoder(Packing(scale_factor=1.0)))[0, 0].tolist() == expected


def test_units_are_changed_on_the_way_out():
    encoder = Encoder(Packing(scale_factor=1e-6), change=Linear(1 / 3600))
    assert encoded(np.full((1, 1, 1), 36.0, np.float32), encoder).item() == 10_000


def test_half_floats_are_packed_as_their_float32_values():
    values = np.random.default_rng(0).gamma(0.5, 4, (3, 40, 70)).astype(np.float16)
    np.testing.assert_array_equal(
        encoded(values, Encoder(Packing())), encoded(values.astype(np.float32), Encoder(Packing()))
    )


@pytest.mark.parametrize("block_cells", [1, 100, 32_768])
def test_packing_does_not_depend_on_strides_or_blocks(block_cells):
    values = np.random.default_rng(0).normal(0, 50, (3, 31, 57)).astype(np.float32)
    values[:, 3:9] = np.nan
    expected = encoded(values, Encoder(Packing()))
    out = np.zeros((3, 40, 80), np.int16)
    kept = values.copy()
    Encoder(Packing(), block_cells=block_cells).encode(values[:, 1:, ::2], out[:, 2:32, 4:33])
    np.testing.assert_array_equal(out[:, 2:32, 4:33], expected[:, 1:, ::2])
    assert (out[:, :2] == 0).all()
    assert (out[:, :, 33:] == 0).all()
    np.testing.assert_array_equal(values, kept)


def encoded_at_once(values, encoder):
    """The formula of `encode`, whole array by whole array."""
    work, space, packing = values.copy(), encoder.space, encoder.packing
    missing = np.isnan(work) | (work < np.float32(-np.inf if space.missing_below is None else space.missing_below))
    with np.errstate(invalid="ignore", over="ignore"):
        space.undo(work)
        work *= encoder.change.factor / packing.scale_factor
        work += (encoder.change.offset - packing.add_offset) / packing.scale_factor
        codes = np.clip(np.rint(work), *encoder.limits).astype(encoder.dtype)
    return np.where(missing, encoder.fill, codes)


@spaces
@given(data=st.data())
def test_every_number_is_packed_by_the_formula_whatever_lies_beside_it(parts, data):
    """Blocks that are dry all over take a short cut."""
    space = make_space(parts, missing_below=data.draw(st.sampled_from([None, -0.5, -20.0])))
    change, cells = Linear(data.draw(st.sampled_from([1.0, 1 / 3600]))), data.draw(st.sampled_from([5, 30, 65_536]))
    encoder = Encoder(data.draw(packings), space, change, cells)
    edges = [np.float32(-1.0), space.dry_below, np.float32(-0.5), np.float32(np.log10(0.125)), np.float32(0.005)]
    near = [np.nextafter(edge, np.float32(side)) for edge in edges for side in (-np.inf, edge, np.inf)]
    dry, any_number = st.floats(-30, -10.5, width=32), st.floats(width=32)
    elements = data.draw(st.sampled_from([dry, dry | st.sampled_from(near), any_number | st.sampled_from(near)]))
    values = data.draw(hnp.arrays(np.float32, (3, 6, 5), elements=elements))
    np.testing.assert_array_equal(encoded(values, encoder), encoded_at_once(values, encoder))


def test_one_encoder_serves_several_threads():
    encoder = Encoder(Packing(), make_space(SPACES["db"]))
    values = [np.random.default_rng(n).normal(0, 8, (4, 64, 300)).astype(np.float32) for n in range(4)]
    expected, found = [encoded(v, encoder) for v in values], [None] * 4

    def work(n):
        for _ in range(5):
            found[n] = encoded(values[n], encoder)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", ["int16", "uint16", "uint8"])
@given(data=st.data())
def test_masked_cells_are_missing_at_every_lead_time_and_no_other_changes(dtype, data):
    encoder, info = Encoder(Packing(dtype=dtype)), np.iinfo(dtype)
    values = st.sampled_from([info.min, info.max, *encoder.limits]) | st.integers(info.min, info.max)
    codes = data.draw(hnp.arrays(dtype, (3, 4, 5), elements=values))
    missing = data.draw(hnp.arrays(np.bool_, (4, 5)))
    expected = np.where(missing, encoder.fill, codes)
    encoder.mask(codes, missing)
    np.testing.assert_array_equal(codes, expected)


@pytest.mark.parametrize("dtype", ["int16", "uint16", "uint8"])
@given(cell=st.none() | st.tuples(st.integers(0, 2), st.integers(0, 129), st.integers(0, 4)))
def test_a_field_has_values_if_one_cell_has_wherever_it_is(dtype, cell):
    encoder = Encoder(Packing(dtype=dtype))
    codes = np.full((3, 130, 5), encoder.fill, dtype)
    if cell is not None:
        codes[cell] = encoder.limits[0]
    assert encoder.has_values(codes) == tuple(cell is not None and cell[0] == lead for lead in range(3))


@pytest.mark.parametrize(
    ("found", "wanted", "value"),
    [
        ("kg m-2 s-1", "mm h-1", 3600.0),
        ("mm h-1", "kg m-2 s-1", 1 / 3600),
        ("m s-1", "mm h-1", 3.6e6),
        ("mm/h", "mm h-1", 1.0),
        ("mm.h-1", "mm h-1", 1.0),
        ("mm hour^-1", "mm h**-1", 1.0),
        ("kg m-2 h-1", "m s-1", 1 / 3.6e6),
    ],
)
def test_rain_rates_convert_as_water(found, wanted, value):
    change = convert_units(Quantity("precipitation_flux", found), Quantity("rainfall_rate", wanted))
    assert change.factor == pytest.approx(value)
    assert change.offset == 0


def test_units_with_an_offset_convert():
    change = convert_units(Quantity("air_temperature", "degC"), Quantity("air_temperature", "K"))
    assert (change.factor, change.offset) == (1.0, 273.15)


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (Quantity("rainfall_rate", "mm"), RAIN),
        (Quantity("rainfall_rate", ""), RAIN),
        (Quantity("rainfall_rate", "furlongs per day of doom"), RAIN),
        (Quantity("equivalent_reflectivity_factor", "dBZ"), RAIN),
        (Quantity(None, "dBZ"), RAIN),
        (Quantity("eastward_wind", "kg m-2 s-1"), Quantity("eastward_wind", "m s-1")),
        (Quantity("eastward_wind", "m s-1"), Quantity("northward_wind", "m s-1")),
    ],
)
def test_quantities_that_do_not_fit_are_refused_with_both_names(found, wanted):
    with pytest.raises(ConfigError) as refused:
        convert_units(found, wanted)
    assert f"found {found}; expected {wanted}" in str(refused.value)


def test_a_store_without_a_standard_name_is_taken_at_its_units():
    assert convert_units(Quantity(None, "mm h-1"), RAIN) == Linear()


def product_input(convert="none"):
    return InputSpec.model_validate(
        {"store": "radar.zarr", "variable": "rain", "history": ["0min"], "convert": convert}
    )


def test_the_decoder_of_a_product_gives_what_the_model_takes():
    flux = Encoding("float32", np.nan, units="kg m-2 s-1", standard_name="precipitation_flux")
    decoder = make_decoder(flux, product_input(), NEEDS)
    assert decoder.decode(np.full((1, 1, 1), 1 / 3600, np.float32)).item() == pytest.approx(1.0)
    assert make_decoder(FMI, product_input("zr"), NEEDS).is_zr


@pytest.mark.parametrize(
    ("encoding", "convert", "message"),
    [
        (FMI, "none", "'rain' in radar.zarr does not fit the model advection 1.0: found equivalent_.* expected lwe_"),
        (MRMS, "zr", "input.convert: zr expects equivalent_reflectivity_factor in dBZ"),
        (Encoding("int16", -1, (-1,), units="dBZ"), "zr", "zr_a and zr_b of the Z-R relation are missing"),
    ],
)
def test_a_store_that_the_model_cannot_take_is_refused(encoding, convert, message):
    with pytest.raises(ConfigError, match=message):
        make_decoder(encoding, product_input(convert), NEEDS)


def test_the_quantity_after_the_conversion_is_rain_rate():
    assert input_quantity(FMI, "zr") == RAIN
    assert input_quantity(MRMS, "none") == Quantity("rainfall_rate", "mm h-1")


def test_the_product_may_ask_for_other_units_than_the_model_gives():
    output = OutputSpec(store="out", variable="rain", attributes={"units": "m s-1"}, packing=Packing(scale_factor=1e-8))
    encoder = make_encoder(output, NEEDS)
    assert output_quantity(output, NEEDS) == Quantity("lwe_precipitation_rate", "m s-1")
    assert encoded(np.full((1, 1, 1), 36.0, np.float32), encoder).item() == 1000
    with pytest.raises(ConfigError, match=r"output.attributes do not fit .* advection 1.0"):
        make_encoder(OutputSpec(store="out", variable="rain", attributes={"units": "K"}), NEEDS)


@pytest.mark.parametrize("parts", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("missing_below", [None, -0.5])
def test_every_half_float_is_packed_as_its_float32_value(parts, missing_below):
    encoder = Encoder(Packing(), make_space(parts, missing_below=missing_below))
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16).reshape(1, 256, 256)
    by_bits, by_value = np.empty(halves.shape, np.int16), np.empty(halves.shape, np.int16)
    encoder.encode(halves, by_bits)
    encoder.encode(halves.astype(np.float32), by_value)
    np.testing.assert_array_equal(by_bits, by_value)


@pytest.mark.parametrize("encoding", [FMI, Encoding("float32", np.nan, (), 1.0, units="mm h-1")])
def test_frames_are_decoded_to_half_floats_as_float32_is_rounded(encoding):
    decoder = Decoder(encoding, make_space(SPACES["log10"], missing=-3.0))
    raw = np.arange(-300, 300).astype(encoding.dtype).reshape(1, 20, 30)
    raw[0, 0, :5] = encoding.fill
    half = decoder.decode(raw, np.empty(raw.shape, np.float16))
    np.testing.assert_array_equal(half, decoder.decode(raw).astype(np.float16))
