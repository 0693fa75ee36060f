"""The kernels without a GPU: their PTX is of their source, and the source, compiled for the host, does what it says."""

import ctypes
import re
import shutil
import subprocess

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.base import EngineError
from engines.codes import CodeTable
from engines.trt import kernels

SOURCES = sorted(kernels.FOLDER.glob("*.cu"))
ENTRIES = re.compile(r'extern "C" __global__ void (\w+)\(')
MACHINE = re.compile(rb"(?:^|[\s\"])/[a-z]")

SPECIAL = np.float32([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, 0.25, -1, -0.25])

HOST = r"""
#include <cstring>
#define __device__
#define __global__
#define __forceinline__ inline
struct Place { unsigned x; };
static Place blockIdx, blockDim, gridDim, threadIdx;
struct float4 { float x, y, z, w; };
struct uint4 { unsigned int x, y, z, w; };
struct ushort4 { unsigned short x, y, z, w; };
struct uchar4 { unsigned char x, y, z, w; };
template <typename T> T __ldg(const T *at) { return *at; }
static int __float_as_int(float value) { int bits; std::memcpy(&bits, &value, 4); return bits; }
static unsigned long long atomicAdd(unsigned long long *at, unsigned long long by) { return *at += by; }
#include "digest.cu"
#include "look_up.cu"
#include "mask.cu"
#include "pack.cu"
template <typename Kernel, typename... Given> void run(unsigned blocks, unsigned threads, Kernel kernel, Given... given)
{
    gridDim.x = blocks; blockDim.x = threads;
    for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x)
        for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x)
            kernel(given...);
}
extern "C" void float_16(unsigned b, unsigned t, const float *v, unsigned short *c, long long n, const int *k,
                         const unsigned short *s, int lowest, int fill, float below)
{ run(b, t, pack_float_16, v, c, n, k, s, lowest, fill, below); }
extern "C" void float_8(unsigned b, unsigned t, const float *v, unsigned char *c, long long n, const int *k,
                        const unsigned short *s, int lowest, int fill, float below)
{ run(b, t, pack_float_8, v, c, n, k, s, lowest, fill, below); }
extern "C" void digested(unsigned b, unsigned t, const u8 *bytes, u64 *sum, long long n)
{ run(b, t, digest, bytes, sum, n); }
#define LOOK_UP(from, From, to, To) \
extern "C" void found_##from##_##to(unsigned b, unsigned t, const From *f, To *v, long long n, const To *table) \
{ run(b, t, look_up_##from##_##to, f, v, n, table); }
#define MASK(from, From, to, To) \
extern "C" void masked_##from##_##to(unsigned b, unsigned t, const From *f, To *c, long long cells, int tiles, \
                                     int frames, int leads, const u8 *missing, int fill) \
{ run(b, t, mask_##from##_##to, f, c, cells, tiles, frames, leads, missing, fill); }
LOOK_UP(8, u8, 16, u16) LOOK_UP(8, u8, 32, u32) LOOK_UP(16, u16, 8, u8) LOOK_UP(16, u16, 16, u16)
LOOK_UP(16, u16, 32, u32) MASK(8, u8, 8, u8) MASK(8, u8, 16, u16) MASK(16, u16, 8, u8) MASK(16, u16, 16, u16)
"""

TABLES = {
    "int16": CodeTable(np.arange(-32766.5, 32767, dtype=np.float32) / 100, "int16", -32767, -32768),
    "uint16": CodeTable(np.arange(0.5, 65534, dtype=np.float32) / 1000, "uint16", 0, 65535, -0.25),
    "uint8": CodeTable(np.append(np.float32([-np.inf, 0, 0.25]), np.float32([np.nan] * 9)), "uint8", 0, 255, -1.0),
}


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """The kernels as functions of the host."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler here")
    folder = tmp_path_factory.mktemp("host")
    (folder / "host.cpp").write_text(HOST)
    command = [compiler, "-std=c++17", "-O1", "-shared", "-fPIC", f"-I{kernels.FOLDER}", "-o", "host.so", "host.cpp"]
    subprocess.run(command, cwd=folder, check=True, timeout=120)
    return ctypes.CDLL(str(folder / "host.so"))


def noise(count):
    """Values of any bits, of rain, and special ones, in no order."""
    random = np.random.default_rng(count)
    bits, rain = random.integers(0, 2**32, count, dtype=np.uint32).view(np.float32), random.normal(0, 30, count)
    values = np.where(random.random(count) < 0.5, bits, rain.astype(np.float32))
    values[::7] = random.choice(
        np.float32([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, 0.25, -1, -0.25]), len(values[::7])
    )
    return values


def address(array):
    return ctypes.c_void_p(array.ctypes.data)


@pytest.mark.parametrize("count", [1, 3, 4, 1027, 50_000])
@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_the_kernel_finds_what_the_table_says(host, table, count):
    values, codes = noise(count), np.full(count + 4, 77, table.dtype)
    keys, below = table.keys.astype(np.int32), float("nan") if table.missing_below is None else table.missing_below
    kernel = getattr(host, f"float_{8 * codes.itemsize}")
    given = address(values), address(codes), ctypes.c_longlong(count), address(keys), address(table.starts)
    kernel(3, 32, *given, table.lowest, table.fill, ctypes.c_float(below))
    np.testing.assert_array_equal(codes[:count], table.search(values))
    assert (codes[count:] == 77).all()


@pytest.mark.parametrize("count", [1, 2, 4, 1027])
@pytest.mark.parametrize("bits", [(8, 16), (8, 32), (16, 8), (16, 16), (16, 32)])
def test_what_a_number_becomes_is_looked_up(host, bits, count):
    random, (given, made) = np.random.default_rng(count), (f"u{size // 8}" for size in bits)
    table = random.integers(0, 2 ** bits[1], 2 ** bits[0]).astype(made)
    numbers, found = random.integers(0, 2 ** bits[0], count).astype(given), np.full(count + 4, 77, made)
    kernel = getattr(host, "found_{}_{}".format(*bits))
    kernel(2, 64, address(numbers), address(found), ctypes.c_longlong(count), address(table))
    np.testing.assert_array_equal(found[:count], table[numbers])
    assert (found[count:] == 77).all()


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 4, 3, 17), (3, 2, 5, 1000)])
@pytest.mark.parametrize("stored", [np.uint8, np.uint16])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16])
def test_cells_that_are_missing_in_the_newest_frame_are_masked_at_every_lead_time(host, shape, stored, dtype):
    (tiles, frames, leads, cells), random = shape, np.random.default_rng(shape)
    missing = (random.random(2 ** (8 * stored().itemsize)) < 0.4).astype(np.uint8)
    given = random.integers(0, len(missing), (tiles, frames, cells)).astype(stored)
    codes = random.integers(0, 100, (tiles, leads, cells)).astype(dtype)
    fill = 255 if dtype == np.uint8 else -32768
    expected = np.where(missing[given[:, -1:]] != 0, dtype(fill), codes)
    kernel = getattr(host, f"masked_{8 * given.itemsize}_{8 * codes.itemsize}")
    sizes = ctypes.c_longlong(cells), tiles, frames, leads
    kernel(3, 32, address(given), address(codes), *sizes, address(missing), fill)
    np.testing.assert_array_equal(codes, expected)


def digest(host, data, blocks=3):
    total = np.zeros(1, np.uint64)
    host.digested(blocks, 32, address(data), address(total), ctypes.c_longlong(len(data)))
    return int(total[0])


@given(st.binary(min_size=1, max_size=400), st.data())
def test_results_that_differ_in_a_bit_or_in_order_have_different_digests(host, data, more):
    there = np.frombuffer(data, np.uint8).copy()
    assert digest(host, there) == digest(host, there, blocks=1)
    before, at = digest(host, there), more.draw(st.integers(0, len(data) - 1))
    moved = np.roll(there, at)
    assert (digest(host, moved) == before) == np.array_equal(moved, there)
    there[at] ^= 1 << more.draw(st.integers(0, 7))
    assert digest(host, there) != before


# The PTX


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_the_ptx_is_of_its_source(source):
    first = kernels.ptx_of(source).read_text().splitlines(keepends=True)[0]
    assert first == kernels.origin_line(source), "make it anew: python -m engines.trt.kernels"


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_the_ptx_has_every_kernel_for_any_gpu_and_names_no_machine(source):
    ptx = kernels.read_ptx(source)
    assert set(re.findall(r"\.visible \.entry (\w+)\(", ptx.decode().rstrip("\0"))) == set(
        ENTRIES.findall(source.read_text())
    )
    assert b"\n.version 7.0\n.target sm_70\n" in ptx
    assert ptx.endswith(b"\0")
    assert not MACHINE.search(ptx)


def test_a_kernel_that_was_not_installed_is_an_error(tmp_path):
    with pytest.raises(EngineError, match=r"a kernel cannot be read, install squall again: .*other\.ptx"):
        kernels.read_ptx(tmp_path / "other.cu")
