"""The product file: what it gives, and that each mistake is named once."""

from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import ConfigError
from pipelines.product import Last, dump_product, format_duration, load_product, parse_duration, parse_size

MINUTE = timedelta(minutes=1)
RAIN = """
name: rain-fmi
input:
  store: radar/fmi.zarr
  variable: reflectivity
  history: [-10min, -5min, 0min]
  convert: zr
model: {package: models/advection}
lead_times: {step: 5min, until: 90min}
output:
  store: forecasts
  variable: rain_rate
"""


@pytest.fixture
def rain(tmp_path: Path) -> Path:
    path = tmp_path / "rain.yaml"
    path.write_text(RAIN)
    return path


def test_durations_are_read(rain):
    product = load_product(rain)
    assert product.input.history == (-10 * MINUTE, -5 * MINUTE, 0 * MINUTE)
    assert len(product.leads) == 18
    assert product.leads[-1] == 90 * MINUTE


def test_relative_paths_start_at_the_folder_of_the_file(rain, tmp_path):
    product = load_product(rain)
    assert product.input.store == str(tmp_path / "radar/fmi.zarr")
    assert product.output.store == str(tmp_path / "forecasts")
    assert product.model.package == str(tmp_path / "models/advection")


def test_urls_and_builtin_models_are_left_alone(rain):
    product = load_product(rain, ["input.store=s3://bucket/fmi.zarr", "model.package=builtin:advection"])
    assert product.input.store == "s3://bucket/fmi.zarr"
    assert product.model.package == "builtin:advection"


def test_an_override_changes_one_key(rain):
    product = load_product(rain, ["input.history={last: 3}", "tiling.tile=[256, 512]", "tiling.memory=500MB"])
    assert product.input.history == Last(last=3)
    assert product.tiling.tile == (256, 512)
    assert product.tiling.memory == 500_000_000


@pytest.mark.parametrize(
    "override", ["workers=2", "input.history={last: 3}", "lead_times=[30min, 60min]", "deadline=90s"]
)
def test_a_dumped_product_reads_back_equal(rain, tmp_path, override):
    product = load_product(rain, [override])
    again = tmp_path / "again.yaml"
    again.write_text(dump_product(product))
    assert load_product(again) == product


@pytest.mark.parametrize(
    ("override", "key", "reason"),
    [
        ("input.history=newest", "input.history", "must be a list of offsets"),
        ("input.attributes={unit: mm/h}", "input.attributes", "unit is not among those that are read: units, "),
        (
            "input.attributes={missing_value: {a: 1}}",
            "input.attributes.missing_value",
            "must be text, a number or a list",
        ),
        ("input.attributes={missing_value: [-3, a]}", "input.attributes.missing_value.1", "valid number"),
        ("input.history=[]", "input.history", "must rise and end with 0min"),
        ("input.history=[0min, -5min]", "input.history", "must rise and end with 0min"),
        ("input.history=[-5min]", "input.history", "must rise and end with 0min"),
        ("input.history=[-5min, -5min, 0min]", "input.history", "must rise and end with 0min"),
        ("input.history=[-5, 0min]", "input.history.0", "-5 has no unit"),
        ("input.history={last: 0}", "input.history.last", "greater than or equal to 1"),
        ("input.tolerance=-5s", "input.tolerance", "greater than or equal to"),
        ("input.missing_frame=ignore", "input.missing_frame", "'refuse' or 'use_available'"),
        ("input.max_missing=1.5", "input.max_missing", "less than or equal to 1"),
        ("input.stor=x", "input.stor", "unknown key"),
        ("name=../rain", "name", "pattern"),
        ("lead_times={step: 5min, until: 12min}", "lead_times", "12min is no multiple of the step 5min"),
        ("lead_times={step: 0min, until: 12min}", "lead_times", "no multiple"),
        ("lead_times={step: 5min}", "lead_times.until", "is missing"),
        ("lead_times=[10min, 5min]", "lead_times", "must rise"),
        ("lead_times=[0min, 5min]", "lead_times", "start after 0min"),
        ("lead_times=60min", "lead_times", "must be a list such as"),
        ("tiling.tile=large", "tiling.tile", "'auto' or 'whole'"),
        ("tiling.tile=512", "tiling.tile", "must be [y, x], auto or whole"),
        ("tiling.tile=[512, 0]", "tiling.tile.1", "greater than or equal to 1"),
        ("tiling.halo=-1", "tiling.halo", "greater than or equal to 0"),
        ("tiling.memory=2TB", "tiling.memory", "has the unit TB"),
        ("output.shards=[1024]", "output.shards.1", "is missing"),
        ("output.attributes={flag_values: [1, 2]}", "output.attributes.flag_values", "must be text or a finite number"),
        ("output.attributes={comment: }", "output.attributes.comment", "must be text or a finite number"),
        ("output.attributes={valid_max: .inf}", "output.attributes.valid_max", "must be text or a finite number"),
        ("output.packing.dtype=float32", "output.packing.dtype", "'int16'"),
        ("output.packing.scale_factor=0", "output.packing.scale_factor", "greater than 0"),
        ("workers=many", "workers", "'auto'"),
        ("deadline=0s", "deadline", "greater than"),
        ("keep_warm=-1min", "keep_warm", "greater than or equal to"),
        ("keep_warm=15", "keep_warm", "15 has no unit"),
        ("output.keep=200000d", "output.keep", "more than a century"),
        ("deadline=" + "9" * 400 + "s", "deadline", "more than a century"),
        ("output.packing.add_offset=.nan", "output.packing.add_offset", "finite"),
        ("model.version=1.0", "model.version", 'put it in quotes, such as "1.0"'),
        ("model.version=2024-06-01", "model.version", 'put it in quotes, such as "2024-06-01"'),
        ("input.stor=" + "x" * 9999, "input.stor", "xxx...xxx"),
    ],
)
def test_a_mistake_is_named_once_with_its_key(rain, override, key, reason):
    with pytest.raises(ConfigError) as refused:
        load_product(rain, [override])
    count, problem = str(refused.value).split("\n")
    assert count.startswith("1 problem(s)")
    assert problem.startswith(f"  {key}: ")
    assert reason in problem
    assert "(found " in problem or "is missing" in problem


def test_every_mistake_is_listed_at_once(rain):
    with pytest.raises(ConfigError, match=r"^3 problem\(s\)"):
        load_product(rain, ["name=-", "input.stor=x", "tiling.tile=large"])


def test_a_version_and_an_alias_exclude_each_other(rain):
    with pytest.raises(ConfigError, match="keep one"):
        load_product(rain, ["model.version=1.0", "model.alias=production", "model.version='1.0'"])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{a: [", "is not YAML"),
        ("- 1", "holds list"),
        ("\xff", "holds str"),
        ("", "holds NoneType"),
        ("deadline: 2016-99-99", "is not YAML: month"),
        ("a: " + "[" * 5000 + "]" * 5000, "is not YAML"),
        (RAIN + "output: {store: elsewhere}", r"gives keys twice: output \(line 13\)"),
        (RAIN.replace("  convert: zr", "  variable: rain"), r"gives keys twice: variable \(line 7\)"),
        ("a: &a {b: *a, c: 1, c: 2}", r"gives keys twice: c \(line 1\)"),
    ],
)
def test_a_file_that_is_no_product_is_refused(tmp_path, text, reason):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=reason):
        load_product(path)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot read product file"):
        load_product(tmp_path / "none.yaml")


@pytest.mark.parametrize("override", ["workers", "=3", "name.x=1", "workers=[", "deadline=2016-99-99"])
def test_an_override_that_fits_nothing_is_refused(rain, override):
    with pytest.raises(ConfigError, match="override"):
        load_product(rain, [override])


def test_an_alias_that_stands_for_millions_of_words_makes_a_short_message(tmp_path):
    path = tmp_path / "x.yaml"
    levels = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 8)]
    path.write_text("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(levels))
    with pytest.raises(ConfigError, match="a7: unknown key") as refused:
        load_product(path)
    assert len(str(refused.value)) < 10_000


def test_a_home_that_nobody_has_is_refused(rain):
    with pytest.raises(ConfigError, match="~nobody-of-this-name/x is no path"):
        load_product(rain, ["output.store=~nobody-of-this-name/x"])


@given(
    st.integers(-(10**6), 10**6).map(lambda s: timedelta(seconds=s))
    | st.timedeltas(-400 * 1440 * MINUTE, 400 * 1440 * MINUTE)
)
def test_a_written_duration_reads_back_equal(value):
    assert parse_duration(format_duration(value)) == value


@pytest.mark.parametrize("text", ["5", "min", "5 minutes", "5m", ""])
def test_a_duration_without_a_known_unit_is_refused(text):
    with pytest.raises(ValueError, match="is no duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "size"), [("2GB", 2 * 10**9), ("1.5 GiB", 3 * 2**29), (7, 7), ("1" + "0" * 400 + "MB", 10**406)]
)
def test_sizes_are_read(text, size):
    assert parse_size(text) == size
