"""The planner: it fits, it is the cheapest, and it says what is in the way."""

import math
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import ConfigError
from pipelines.planner import Crew, Flight, Needs, Pace, make_plan
from pipelines.product import TilingSpec
from pipelines.tiling import Tiling, round_up

MRMS, FMI = (3500, 7000), (1226, 760)
UNET = Needs(radius=46, stride=8, bytes_per_cell=420.0)


PACE = Pace()


def spec(**values) -> TilingSpec:
    return TilingSpec(**values)


def memory_of(tiling: Tiling, needs: Needs) -> float:
    return tiling.tile[0] * tiling.tile[1] * needs.bytes_per_cell


def finish(tiling: Tiling, crew: Crew) -> float:
    """Cells that the busiest worker infers, one thread each or the threads of those that have nothing to do; beside
    GPUs the seconds until the last block is packed."""
    per_block = [len(tiling.tiles(block)) for block in tiling.blocks()]
    workers = min(crew.workers, len(per_block))
    rounds = math.ceil(len(per_block) / workers)
    threads = crew.workers // workers if crew.shared else 1
    cells = sum(per_block) * tiling.tile[0] * tiling.tile[1]
    work = cells / len(per_block)
    if crew.shared:
        return work * rounds / threads
    infer = work * PACE.infer
    cells = math.prod(min(b, g) for b, g in zip(tiling.block, tiling.grid, strict=True))
    cores = crew.cores // workers or 1
    first = cells * PACE.host * (0.3 + 0.7 / cores)
    return infer + first + (rounds - 1) * max(infer * crew.per_gpu, cells * PACE.host / cores)


def every_cut(grid, shard, needs):
    """All ways to cut with whole shards as cores, or shards into even cores of no less than 64 cells."""
    halo = round_up(needs.radius, needs.stride)

    def along(axis):
        count = math.ceil(grid[axis] / shard[axis])
        for n in range(2, count + 1):
            yield shard[axis] * n, shard[axis] * n
        for parts in range(1, max(2, shard[axis] // 64)):
            yield round_up(math.ceil(shard[axis] / parts), needs.stride), shard[axis]

    yield Tiling(grid, tuple(round_up(g, s) for g, s in zip(grid, shard, strict=True)), grid, halo, needs.stride)
    for (y_core, y_block), (x_core, x_block) in product(along(0), along(1)):
        yield Tiling(grid, (y_block, x_block), (y_core, x_core), halo, needs.stride)


needs_ = st.builds(Needs, st.integers(0, 60), st.sampled_from([1, 4, 8, 16]), st.floats(10, 2000))
grids = st.tuples(st.integers(50, 900), st.integers(50, 900))
shards = st.tuples(st.sampled_from([64, 100, 256, 512]), st.sampled_from([64, 100, 256, 512]))
crews = st.builds(Crew, st.integers(1, 6), st.booleans(), st.integers(1, 40), st.none(), st.integers(1, 4))


@settings(max_examples=40, deadline=None)
@given(grid=grids, shard=shards, needs=needs_, megabytes=st.integers(5, 400), crew=crews)
def test_the_plan_fits_and_no_other_cut_that_fits_is_cheaper(grid, shard, needs, megabytes, crew):
    limit = megabytes * 10**6
    costs = [finish(t, crew) for t in every_cut(grid, shard, needs) if memory_of(t, needs) <= limit]
    if not costs:
        with pytest.raises(ConfigError, match="no tile fits"):
            make_plan(grid, shard, needs, spec(memory=limit), crew)
        return
    plan = make_plan(grid, shard, needs, spec(memory=limit), crew)
    assert plan.memory_bytes <= limit
    assert finish(plan.tiling, crew) == pytest.approx(min(costs))


@settings(max_examples=40, deadline=None)
@given(grid=grids, shard=shards, needs=needs_, crew=crews)
def test_blocks_are_whole_shards_and_the_halo_covers_the_radius(grid, shard, needs, crew):
    tiling = make_plan(grid, shard, needs, spec(memory=10**12), crew).tiling
    assert all(block % one == 0 for block, one in zip(tiling.block, shard, strict=True))
    assert tiling.halo >= needs.radius
    assert tiling.stride == needs.stride


def test_one_worker_with_memory_enough_takes_the_whole_frame():
    plan = make_plan(FMI, FMI, UNET, spec(memory="2GB"))
    assert plan.tiling.tile == plan.tiling.frame == (1232, 760)
    assert plan.reason.startswith("whole frame 1232 x 760, least padded work: 1.00 cells")


def test_a_grid_that_does_not_fit_whole_is_cut():
    plan = make_plan(MRMS, (1024, 1024), UNET, spec(memory="2GB"))
    assert plan.tiling.tile_count > 1
    assert plan.memory_bytes <= 2e9
    assert plan.tiling.padded_work < 1.4


def test_several_workers_get_a_block_each():
    plan = make_plan(MRMS, (1024, 1024), UNET, spec(memory="64GB"), Crew(4, shared=False))
    assert len(plan.tiling.blocks()) >= 4


def test_a_model_that_sees_everything_runs_on_the_whole_frame():
    plan = make_plan(FMI, (256, 256), Needs(None, 8, 100.0), spec())
    assert plan.tiling.tile == plan.tiling.frame
    assert len(plan.tiling.blocks()) == 1


@pytest.mark.parametrize("shard", [(1226, 760), (512, 512), (500, 300)])
def test_the_tile_of_the_product_is_the_tile_of_the_plan(shard):
    plan = make_plan(FMI, shard, UNET, spec(tile=(512, 256)))
    assert plan.tiling.tile == (512, 256)
    assert plan.tiling.halo == 48
    assert "as the product says" in plan.reason


def test_a_tile_larger_than_the_grid_is_the_whole_frame():
    assert make_plan(FMI, (256, 256), UNET, spec(tile=(1280, 1280))).tiling.tile == (1232, 760)
    assert make_plan(FMI, (256, 256), UNET, spec(tile=(512, 1280))).tiling.tile == (512, 760)


def test_the_whole_frame_can_be_asked_for():
    assert make_plan(FMI, (256, 256), UNET, spec(tile="whole")).tiling.tile == (1232, 760)


def test_a_larger_halo_is_taken_and_rounded_to_the_lattice():
    assert make_plan(FMI, FMI, UNET, spec(halo=60, tile=(256, 256))).tiling.halo == 64


@pytest.mark.parametrize("shard", [(1226, 760), (500, 300), (512, 512)])
def test_a_model_of_one_tile_size_gets_tiles_of_that_size(shard):
    needs = Needs(46, 8, 420.0, size=(256, 320))
    assert make_plan(FMI, shard, needs, spec()).tiling.tile == (256, 320)


def test_a_batch_counts_as_often_as_it_has_tiles():
    plan = make_plan(MRMS, (1024, 1024), UNET, spec(memory="2GB", batch=8))
    assert plan.batch == 8
    assert plan.memory_bytes == 8 * int(memory_of(plan.tiling, UNET)) <= 2e9


def test_a_blend_has_the_tile_and_halo_that_were_asked_for():
    tiling = make_plan(FMI, (500, 300), Needs(None, 8, 100.0), spec(mode="feather", tile=(512, 512), halo=64)).tiling
    assert (tiling.mode, tiling.tile, tiling.halo, tiling.core) == ("feather", (512, 512), 64, (384, 384))


def test_a_blend_without_a_halo_blends_an_eighth_of_the_tile():
    assert make_plan(FMI, FMI, UNET, spec(mode="feather", tile=(512, 512))).tiling.halo == 64


def test_a_blend_may_overlap_less_than_the_model_sees():
    assert make_plan(FMI, FMI, UNET, spec(mode="feather", tile=(256, 256), halo=16)).tiling.halo == 16


FIXED = Needs(46, 8, 420.0, size=(512, 512))


@pytest.mark.parametrize("radius", [25, None])
@pytest.mark.parametrize("size", [(1232, 760), (1232, 768), (1248, 768), (1280, 768)])
def test_a_model_of_the_padded_frame_runs_the_whole_frame(radius, size):
    tiling = make_plan(FMI, (256, 256), Needs(radius, 4, 100.0, size), spec()).tiling
    assert (tiling.tile, len(tiling.blocks())) == (size, 1)


GLOBAL = Needs(None, 8, 100.0)


@pytest.mark.parametrize(
    ("grid", "needs", "how", "message"),
    [
        (MRMS, UNET, {"memory": "1MB"}, r"no tile fits: the smallest, in batches of 1, needs 0\.\d+ GB"),
        (FMI, UNET, {"tile": (512, 512), "batch": 64}, r"in batches of 64, needs 7\.05 GB, tiling.memory allows 2\.00"),
        (FMI, UNET, {"tile": "whole", "memory": "100MB"}, r"no tile fits: .* needs 0\.39 GB"),
        (MRMS, GLOBAL, {}, r"the whole frame, .* global, in batches of 1, needs 2\.45 GB, tiling.memory allows 2\.00"),
        (FMI, UNET, {"halo": 40}, "halo 40 is less than the model's receptive radius 46.*; use 48 or"),
        (FMI, UNET, {"tile": (96, 256)}, r"leaves no core inside a halo of 48 cells on every side; use more than 96"),
        (FMI, UNET, {"tile": (250, 256)}, r"tile \(250, 256\) is not a multiple of .* stride 8; use \[256, 256\]"),
        (FMI, GLOBAL, {"tile": (512, 512)}, r"tile \(512, 512\) cannot be cropped exactly.*; use tiling.tile=whole"),
        (FMI, Needs(None, 8, 1.0, (512, 512)), {}, r"\(512, 512\) cannot be cropped exactly.*; declare tile.radius"),
        (FMI, FIXED, {"tile": (256, 256)}, r"takes tiles of \(512, 512\) only; found tiling.tile=\(256, 256\)"),
        (FMI, FIXED, {"tile": "whole"}, r"takes tiles of \(512, 512\) only; found tiling.tile=whole"),
        ((300, 900), FIXED, {}, r"takes tiles of \(512, 512\) cells only, and the grid of \(300, 900\) is smaller"),
        ((300, 900), FIXED, {"mode": "feather"}, r"and the grid of \(300, 900\) is smaller"),
        (FMI, Needs(46, 8, 1.0, batch=1), {"batch": 4}, r"takes batches of 1 only; found tiling.batch=4"),
        (FMI, Needs(46, 8, 1.0, batch=4), {}, r"takes batches of 4 only; found tiling.batch=auto"),
        (FMI, Needs(46, 8, 1.0, batch=4), {"batch": 4}, r"takes batches of 4 only; .*; export the model with"),
        (FMI, UNET, {"mode": "feather"}, r"needs a tile size; found tiling.tile=auto; give one such as"),
        (FMI, UNET, {"mode": "feather", "tile": "whole"}, r"needs a tile size; found tiling.tile=whole"),
        (FMI, UNET, {"mode": "feather", "tile": (64, 64), "halo": 32}, "leaves no core inside a halo of 32 cells"),
    ],
)  # fmt: skip
def test_what_is_in_the_way_is_named(grid, needs, how, message):
    with pytest.raises(ConfigError, match=message):
        make_plan(grid, (512, 512), needs, spec(**how))


def test_beside_a_gpu_blocks_are_small_enough_to_keep_the_cores_busy():
    needs = Needs(radius=78, stride=16, bytes_per_cell=400.0)
    alone = make_plan(MRMS, (896, 1024), needs, spec(memory="64GB"), Crew(1, shared=False, cores=1))
    beside = make_plan(MRMS, (896, 1024), needs, spec(memory="64GB"), Crew(1, shared=False, cores=16))
    assert beside.tiling.block == (896, 1024)
    assert len(alone.tiling.blocks()) <= len(beside.tiling.blocks()) == 28
    assert "done first" in beside.reason


def test_where_the_gpu_takes_all_of_the_time_padded_work_decides():
    needs = Needs(radius=78, stride=16, bytes_per_cell=400.0)
    crew, slow = Crew(1, shared=False, cores=16), Pace(infer=1e-6, host=1e-12)
    plan = make_plan(MRMS, (896, 1024), needs, spec(memory="64GB"), crew, slow)
    assert plan.tiling.tile == plan.tiling.frame


@pytest.mark.parametrize(
    ("tile", "memory", "crew", "batch"),
    [
        ((256, 256), "64GB", Crew(1, shared=False, cores=16), 13),  # 25 of a block; 16 are a million cells
        ((256, 256), "64GB", Crew(1, shared=True, cores=16), 1),
        ((256, 256), "200MB", Crew(1, shared=False, cores=16), 7),  # of 26 MB each
        ((512, 512), "64GB", Crew(1, shared=False, cores=16), 3),  # 9 of a block, and 4 fit
        ((1312, 1312), "64GB", Crew(1, shared=False, cores=16), 1),  # alone more than a GPU needs
        ("auto", "64GB", Crew(1, shared=False, cores=16), 1),
    ],
)
def test_beside_a_gpu_small_tiles_are_run_together(tile, memory, crew, batch):
    needs = Needs(radius=8, stride=16, bytes_per_cell=400.0)
    plan = make_plan(MRMS, (1024, 1024), needs, spec(memory=memory, tile=tile), crew)
    assert plan.batch == batch
    assert plan.memory_bytes == batch * memory_of(plan.tiling, needs)


def test_a_batch_is_never_more_than_the_tiles_of_a_block():
    needs = Needs(radius=0, stride=8, bytes_per_cell=400.0)
    plan = make_plan((64, 64), (64, 64), needs, spec(tile=(32, 32)), Crew(1, shared=False, cores=16))
    assert plan.batch == 4


def test_batches_of_a_block_are_as_even_as_they_go():
    needs = Needs(radius=0, stride=8, bytes_per_cell=400.0)
    plan = make_plan((192, 128), (192, 128), needs, spec(tile=(64, 64), memory="7MB"), Crew(1, shared=False, cores=16))
    assert len(plan.tiling.tiles(plan.tiling.blocks()[0])) == 6
    assert plan.batch == 3  # of 4 that fit: 4 and 2 would be two shapes


def test_a_model_of_one_batch_keeps_it():
    needs = Needs(radius=8, stride=16, bytes_per_cell=400.0, batch=1)
    assert make_plan(MRMS, (1024, 1024), needs, spec(tile=(256, 256)), Crew(1, shared=False, cores=16)).batch == 1


def test_the_user_says_how_many_blocks_are_in_flight():
    assert Crew(1, shared=False, cores=16, in_flight=4).flight(28) == Flight(4, 16)
    assert Crew(2, shared=True, cores=2, in_flight=3).flight(28) == Flight(3, 1)
    assert Crew(2, shared=True, cores=4).flight(28) == Flight(1, 2)


@given(blocks=st.integers(1, 60), workers=st.integers(1, 8), cores=st.integers(1, 128), shared=st.booleans())
def test_no_more_threads_are_under_way_than_there_are_cores(blocks, workers, cores, shared):
    flight = Crew(workers, shared, cores).flight(blocks)
    busy = min(workers, blocks)
    assert flight.threads == max(1, cores // busy)
    assert 1 <= flight.blocks <= -(-blocks // busy)
