// Adds up the bytes of a result, each mixed with its place, so that results that differ in any bit have different sums
// but for one chance in 2^64. The order in which threads add does not matter.
//
// Source of the mix: Steele, Lea and Flood (2014), "Fast splittable pseudorandom number generators".

typedef unsigned char u8;
typedef unsigned long long u64;

extern "C" __global__ void digest(const u8 *bytes, u64 *sum, long long count)
{
    const long long step = gridDim.x * (long long)blockDim.x;
    u64 mine = 0;
    for (long long at = blockIdx.x * (long long)blockDim.x + threadIdx.x; at < count; at += step) {
        u64 mixed = ((u64)at << 8) + bytes[at];
        mixed = (mixed ^ (mixed >> 30)) * 0xbf58476d1ce4e5b9ull;
        mixed = (mixed ^ (mixed >> 27)) * 0x94d049bb133111ebull;
        mine += mixed ^ (mixed >> 31);
    }
    atomicAdd(sum, mine);
}
