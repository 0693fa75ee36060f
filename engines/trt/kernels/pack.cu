// Results of a model to the codes of a store, by look-up in tables that come from the host.
//
// float: `thresholds` are the least values of the codes lowest + 1, lowest + 2, ..., as keys: the bits of a float, those
// of negative ones turned round, so that keys are in the order of values. The code of a value is lowest + how many
// thresholds are not above it. `starts[u]` of them lie below every key whose upper 16 bits are u (counted from the least
// key), so only those from starts[u] to starts[u + 1] are left to be searched: mostly none, one or two.
// NaN and what is below `missing_below` (NaN: no such bound) becomes `fill`.
//
// half: look_up.cu.
//
// Each thread makes 4 codes of 4 values that lie together, then goes on a whole grid further; the last up to 3 values are
// made one by one. Arrays start at an address that cudaMalloc gave.

struct Table {
    const int *thresholds;
    const unsigned short *starts;
    int lowest, fill;
    float missing_below;
};

__device__ __forceinline__ int code_of(float value, const Table &table)
{
    if (value != value || value < table.missing_below)
        return table.fill;
    const int bits = __float_as_int(value);
    const int key = bits < 0 ? bits ^ 0x7fffffff : bits;
    const unsigned upper = (static_cast<unsigned>(key) ^ 0x80000000u) >> 16;
    int low = __ldg(table.starts + upper), high = __ldg(table.starts + upper + 1);
    while (low < high) {
        const int middle = (low + high) >> 1;
        if (__ldg(table.thresholds + middle) <= key)
            low = middle + 1;
        else
            high = middle;
    }
    return table.lowest + low;
}

__device__ __forceinline__ long long first_of_thread() { return blockIdx.x * (long long)blockDim.x + threadIdx.x; }

__device__ __forceinline__ long long threads_of_grid() { return gridDim.x * (long long)blockDim.x; }

template <typename Code, typename Code4>
__device__ __forceinline__ void pack_float(const float *values, Code *codes, long long count, const Table &table)
{
    const long long fours = count / 4, step = threads_of_grid();
    for (long long at = first_of_thread(); at < fours; at += step) {
        const float4 value = reinterpret_cast<const float4 *>(values)[at];
        Code4 code;
        code.x = static_cast<Code>(code_of(value.x, table));
        code.y = static_cast<Code>(code_of(value.y, table));
        code.z = static_cast<Code>(code_of(value.z, table));
        code.w = static_cast<Code>(code_of(value.w, table));
        reinterpret_cast<Code4 *>(codes)[at] = code;
    }
    for (long long at = 4 * fours + first_of_thread(); at < count; at += step)
        codes[at] = static_cast<Code>(code_of(values[at], table));
}

extern "C" __global__ void pack_float_16(const float *values, unsigned short *codes, long long count,
                                         const int *thresholds, const unsigned short *starts, int lowest, int fill,
                                         float missing_below)
{
    pack_float<unsigned short, ushort4>(values, codes, count, {thresholds, starts, lowest, fill, missing_below});
}

extern "C" __global__ void pack_float_8(const float *values, unsigned char *codes, long long count,
                                        const int *thresholds, const unsigned short *starts, int lowest, int fill,
                                        float missing_below)
{
    pack_float<unsigned char, uchar4>(values, codes, count, {thresholds, starts, lowest, fill, missing_below});
}
