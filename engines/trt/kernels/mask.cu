// Makes a cell missing at every lead time where it is missing in the newest frame: `missing` says of each code of the
// store, by its bits, whether it means so; its code in the results becomes `fill`.
//
// stored (tile, frame, cell), codes (tile, lead, cell). Each thread looks at one cell of one tile, then goes on a whole
// grid further. Threads beside each other look at cells beside each other.

typedef unsigned char u8;
typedef unsigned short u16;

template <typename Stored, typename Code>
__device__ __forceinline__ void mask(const Stored *stored, Code *codes, long long cells, int tiles, int frames,
                                     int leads, const u8 *missing, int fill)
{
    const long long step = gridDim.x * (long long)blockDim.x;
    for (long long at = blockIdx.x * (long long)blockDim.x + threadIdx.x; at < tiles * cells; at += step) {
        const long long tile = at / cells, cell = at - tile * cells;
        if (!__ldg(missing + stored[(tile * frames + frames - 1) * cells + cell]))
            continue;
        Code *code = codes + tile * leads * cells + cell;
        for (int lead = 0; lead < leads; lead++, code += cells)
            *code = static_cast<Code>(fill);
    }
}

extern "C" __global__ void mask_8_8(const u8 *stored, u8 *codes, long long cells, int tiles, int frames, int leads,
                                    const u8 *missing, int fill)
{
    mask(stored, codes, cells, tiles, frames, leads, missing, fill);
}

extern "C" __global__ void mask_8_16(const u8 *stored, u16 *codes, long long cells, int tiles, int frames, int leads,
                                     const u8 *missing, int fill)
{
    mask(stored, codes, cells, tiles, frames, leads, missing, fill);
}

extern "C" __global__ void mask_16_8(const u16 *stored, u8 *codes, long long cells, int tiles, int frames, int leads,
                                     const u8 *missing, int fill)
{
    mask(stored, codes, cells, tiles, frames, leads, missing, fill);
}

extern "C" __global__ void mask_16_16(const u16 *stored, u16 *codes, long long cells, int tiles, int frames, int leads,
                                      const u8 *missing, int fill)
{
    mask(stored, codes, cells, tiles, frames, leads, missing, fill);
}
