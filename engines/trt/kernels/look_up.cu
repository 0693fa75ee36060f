// What each number of 8 or 16 bits becomes, by look-up in a table that comes from the host: codes of a store become
// values of a model, and values in half become codes. Numbers are bits here, whatever they mean.
//
// Each thread takes 4 numbers that lie together, then goes on a whole grid further; the last up to 3 are taken one by
// one. Arrays start at an address that cudaMalloc gave.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;

template <typename From, typename From4, typename To, typename To4>
__device__ __forceinline__ void look_up(const From *from, To *to, long long count, const To *table)
{
    const long long first = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    const long long fours = count / 4, step = gridDim.x * (long long)blockDim.x;
    for (long long at = first; at < fours; at += step) {
        const From4 given = reinterpret_cast<const From4 *>(from)[at];
        To4 found;
        found.x = __ldg(table + given.x);
        found.y = __ldg(table + given.y);
        found.z = __ldg(table + given.z);
        found.w = __ldg(table + given.w);
        reinterpret_cast<To4 *>(to)[at] = found;
    }
    for (long long at = 4 * fours + first; at < count; at += step)
        to[at] = __ldg(table + from[at]);
}

extern "C" __global__ void look_up_8_16(const u8 *from, u16 *to, long long count, const u16 *table)
{
    look_up<u8, uchar4, u16, ushort4>(from, to, count, table);
}

extern "C" __global__ void look_up_8_32(const u8 *from, u32 *to, long long count, const u32 *table)
{
    look_up<u8, uchar4, u32, uint4>(from, to, count, table);
}

extern "C" __global__ void look_up_16_8(const u16 *from, u8 *to, long long count, const u8 *table)
{
    look_up<u16, ushort4, u8, uchar4>(from, to, count, table);
}

extern "C" __global__ void look_up_16_16(const u16 *from, u16 *to, long long count, const u16 *table)
{
    look_up<u16, ushort4, u16, ushort4>(from, to, count, table);
}

extern "C" __global__ void look_up_16_32(const u16 *from, u32 *to, long long count, const u32 *table)
{
    look_up<u16, ushort4, u32, uint4>(from, to, count, table);
}
