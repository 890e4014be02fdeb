// Squared Mahalanobis distances by coarse-to-fine whitening, and the score map made of them.
//
// One file because it is one compilation unit: self-contained, no header is needed, so NVRTC (which
// is given this text and has no files), nvcc and the tests' shim for the CPU compile it without an
// include path, and the key of the compiled code is the hash of this file. The host side is beside
// it: parameter structs in launch.py, layout of the constants and launch geometry in whitening.py
// and smoothing.py; every array named here is described there.
//
// The floor
// ---------
// A whitening constant meets one multiply-add per frame, so at small batch the time of a frame
// is (bytes of W) / (memory bandwidth): WideResNet-50-2 with 550 channels in float16 is 380 MB,
// 0.13 ms at 2.9 TB/s and 1.9 ms at 205 GB/s. Everything below serves one end: 16-byte loads,
// each byte of W once, with enough of them under way, and arithmetic that stays in their shadow.
//
// Who reads what
// --------------
// * chunk  16 bytes: 4, 8 or 16 columns of one row (float32, float16, int8).
// * line   128 bytes: the same chunk of 8 rows; what 8 neighbouring lanes load at once.
// * strip  8 rows: a run of lines, first those of the coarser levels' columns, then the level's
//          own columns up to the diagonal. Chunks above the diagonal are not even stored. A
//          warp loads 4 lines (512 contiguous bytes) at once: lane = 8 * split + row, `split`
//          going through the lines in turn. A row's dot product thus needs two shuffles, once.
// * family all positions of a level under one parent (8 at most). Their rows meet the same
//          coarse vector, so they share strips, row by row: row i of every sibling, then row
//          i + 1. Levels of few channels fill warps as well as large ones, and the diagonal is
//          followed in steps of a chunk. Row slot r of any strip belongs to sibling
//          r % siblings, so a lane adds up squares of one position only.
// * part   a family's strips are dealt out to the warps of one or several blocks, some two
//          strips each: blocks of some 100 kB, small enough to leave no tail and large enough
//          to repay gathering the vector.
//
// A block gathers the centred vectors of its family into shared memory, straight from the
// layers' maps: z, float32, chunk by chunk, the frames of a chunk side by side. The 8 rows of a
// line read the same z, a broadcast; the 4 splits read neighbouring chunks, which 16 bytes of
// padding after each chunk keep in different banks.
//
// Bytes under way: a lane holds 4 chunks and asks for the next 4 before it uses them, across the
// ends of strips too, and for the first 4 before the vectors are gathered. 32 resident warps are
// 64 kB per multiprocessor; 3.35 TB/s on 132 of them at a latency of 0.8 us need 20 kB.
//
// Frames: up to 8 meet a chunk while it is in registers. From two frames on a warp takes two
// strips at a time, which halves the reads of z per multiply-add. More than 8 frames are groups
// of 8; the groups of one part are neighbouring blocks, so the later ones find W in the L2 cache.
//
// Sums are in float32 and in a fixed order: the same input gives the same bits.

constexpr int kLevels = 4;
constexpr int kSources = 8;
constexpr int kStrip = 8;         // rows of a strip
constexpr int kSplits = 4;        // lines that a warp loads at once
constexpr int kSiblingBits = 3;   // a family has 2^3 positions at most
constexpr int kTileRows = 8;      // of the score map, for a block of `smooth`
constexpr int kTileColumns = 64;
constexpr unsigned kWarp = 0xffffffffu;

extern __shared__ float4 shared[];

// Maps [N, channels, height, width] of one layer.
struct Source {
    const void* maps;
    long long frame;  // elements from one frame to the next
    int plane;        // elements from one channel to the next
    int column;       // channels of all sources before this one; a huge number if there is none
    int level;
    int pixels;       // where its pixel numbers by tree position start in `pixels`
};

struct Level {
    unsigned blocks;        // families * parts
    unsigned parts;         // blocks of a family
    int sibling_bits;       // 2^bits positions are a family: 1, 2, 4 or 8
    int strips;             // of a family
    int first_line;         // of the level's first family
    int family_lines;
    int coarse_lines;       // lines of a strip that belong to coarser levels' columns
    int own_lines;          // most that a strip has of its own columns
    int tread_bits, rise;   // every 2^bits strips the diagonal is `rise` lines further on
    int channels;
    int column;             // channels of all coarser levels
    int positions;
    int means;              // where its means [position in tree order, channel] start
    int pixels;             // where its raster numbers by tree position start in `pixels`
    int squared;            // where its planes [part, raster position] start in a frame's result
    int start[kLevels];     // column of z where that level's begin; the own ones of sibling 0
    unsigned below[kLevels];  // positions of this level in one of a coarser level
};

struct Mahalanobis {
    const uint4* weights;   // lines
    const float* means;
    const int* pixels;
    float* squared;         // [N, frame]
    int* scores;            // [N], set to 0 for `smooth` to raise
    long long frame;        // floats per frame of `squared`
    int frames;             // N
    unsigned groups;        // of frames that one pass over W serves
    int levels;
    int half_maps;          // maps are float16, not float32
    Level level[kLevels];   // coarse to fine
    Source source[kSources];
};

// ---------------------------------------------------------------------------------------------
// Formats of the constants: four columns of a chunk as float32.

// Both halves of a word, the lower one first. Inline, because cuda_fp16.h is not part of NVRTC.
__device__ __forceinline__ float2 halves(unsigned word) {
#ifdef __CUDACC__
    float2 value;
    asm("{\n\t.reg .b16 low, high;\n\tmov.b32 {low, high}, %2;\n\t"
        "cvt.f32.f16 %0, low;\n\tcvt.f32.f16 %1, high;\n\t}"
        : "=f"(value.x), "=f"(value.y) : "r"(word));
    return value;
#else
    return shim_halves(word);  // compiled for a CPU, by the tests
#endif
}

__device__ __forceinline__ unsigned word_of(uint4 chunk, int index) {
    return index == 0 ? chunk.x : index == 1 ? chunk.y : index == 2 ? chunk.z : chunk.w;
}

struct Float32 {
    static constexpr int columns = 4;
    static constexpr bool scaled = false;
    static constexpr unsigned zeros = 0;
    static __device__ __forceinline__ float4 four(uint4 chunk, int) {
        return make_float4(__uint_as_float(chunk.x), __uint_as_float(chunk.y),
                           __uint_as_float(chunk.z), __uint_as_float(chunk.w));
    }
};

struct Float16 {
    static constexpr int columns = 8;
    static constexpr bool scaled = false;
    static constexpr unsigned zeros = 0;
    static __device__ __forceinline__ float4 four(uint4 chunk, int index) {
        const float2 a = halves(word_of(chunk, 2 * index));
        const float2 b = halves(word_of(chunk, 2 * index + 1));
        return make_float4(a.x, a.y, b.x, b.y);
    }
};

// A strip starts with one line more: the float32 scales of each row, one per level's columns.
// They stay in the L1 cache: in registers they would take as many as the sums of 8 frames.
struct Int8 {
    static constexpr int columns = 16;
    static constexpr bool scaled = true;
    static constexpr unsigned zeros = 0x80808080u;
    // Values are stored plus 128. Placed in the lowest bits of 2^23, a byte is a float without
    // a conversion, of which some architectures do only 16 per clock.
    template <int Index>
    static __device__ __forceinline__ float value(unsigned word) {
        constexpr float bias = 8388608.0f + 128.0f;
        return __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7440u + Index)) - bias;
    }
    static __device__ __forceinline__ float4 four(uint4 chunk, int index) {
        const unsigned word = word_of(chunk, index);
        return make_float4(value<0>(word), value<1>(word), value<2>(word), value<3>(word));
    }
};

// ---------------------------------------------------------------------------------------------
// Distances.

__device__ __forceinline__ void prefetch(const void* address) {
#ifdef __CUDACC__
    asm volatile("prefetch.global.L1 [%0];" : : "l"(address));
#else
    (void)address;
#endif
}

// Strips strips that follow each other.
template <int Strips>
struct Rows {
    int first[Strips];  // line of the family
    int lines[Strips];  // none if there is no such strip
    int longest;
};

// `family`: the lane's chunk in the family's first line.
template <typename Format, int Strips>
__device__ __forceinline__ Rows<Strips> rows_of(
        const uint4* family, const Level& level, int item) {
    constexpr int header = Format::scaled ? 1 : 0;
    Rows<Strips> rows;
    rows.longest = 0;
#pragma unroll
    for (int s = 0; s < Strips; ++s) {
        const int strip = item * Strips + s;
        const int step = strip >> level.tread_bits;
        // Own lines of all strips before this one: the staircase under the diagonal.
        const int stairs = ((step * (step + 1) / 2) << level.tread_bits)
            + (strip - (step << level.tread_bits)) * (step + 1);
        const bool present = strip < level.strips;
        rows.first[s] = strip * (level.coarse_lines + header) + stairs * level.rise + header;
        rows.lines[s] = present
            ? level.coarse_lines + min(level.rise * (step + 1), level.own_lines) : 0;
        rows.longest = max(rows.longest, rows.lines[s]);
        if (Format::scaled && present) prefetch(family + (rows.first[s] - 1) * kStrip);
    }
    return rows;
}

template <int Strips, int Lines>
struct Batch {
    uint4 chunk[Strips][Lines];
};

// The chunks of lines `line`, `line` + 4, ... of each strip. They are read once: `cs` marks them
// as the first to leave the caches, where the backbone's weights may stay.
template <typename Format, int Lines, int Strips>
__device__ __forceinline__ Batch<Strips, Lines> load(
        const uint4* family, const Rows<Strips>& rows, int line) {
    constexpr unsigned zeros = Format::zeros;
    Batch<Strips, Lines> batch;
#pragma unroll
    for (int u = 0; u < Lines; ++u) {
#pragma unroll
        for (int s = 0; s < Strips; ++s) {
            const int at = line + u * kSplits;
            batch.chunk[s][u] = at < rows.lines[s]
                ? __ldcs(family + (rows.first[s] + at) * kStrip)
                : make_uint4(zeros, zeros, zeros, zeros);
        }
    }
    return batch;
}

__device__ __forceinline__ float element(const float* maps, long long index) {
    return __ldg(maps + index);
}

__device__ __forceinline__ float element(const unsigned short* maps, long long index) {
    return halves(__ldg(maps + index)).x;
}

// Where the channels of a source are found at one position.
struct __align__(8) Place {
    int pixel;  // in a map of the source
    int mean;   // of the level's channel 0, in `means`
};

// Places of every source for each sibling; siblings have their ancestors in common.
__device__ __forceinline__ void find_places(
        const Mahalanobis& p, const Level& level, int index, int position, Place* places) {
    for (int i = threadIdx.x; i < kSources << kSiblingBits; i += blockDim.x) {
        const Source& source = p.source[i >> kSiblingBits];
        if (source.level > index) break;
        const int sibling = i & ((1 << level.sibling_bits) - 1);
        const int at = source.level == index ? position + sibling
            : static_cast<int>(static_cast<unsigned>(position) / level.below[source.level]);
        const Level& home = p.level[source.level];
        places[i].pixel = __ldg(p.pixels + source.pixels + at);
        places[i].mean = home.means + at * home.channels;
    }
}

// z of a family: the columns of its ancestors, then its own, sibling by sibling.
template <typename Map, int Columns, int Frames>
__device__ __forceinline__ void gather(
        const Mahalanobis& p, const Level& level, const Place* places, int frame, float* z) {
    constexpr int stride = Columns * Frames + 4;  // floats of a chunk
    // Channels per thread whose loads are all under way before the first is stored.
    constexpr int batch = Frames < 4 ? 4 / Frames : 1;
    const int count = level.column + (level.channels << level.sibling_bits);
    for (int first = threadIdx.x; first < count; first += batch * blockDim.x) {
        float value[batch][Frames];
        float* slot[batch];
#pragma unroll
        for (int b = 0; b < batch; ++b) {
            const int i = min(first + b * static_cast<int>(blockDim.x), count - 1);
            // Siblings are neighbours in the maps: let neighbouring lanes read them.
            const int own = max(i - level.column, 0);
            const int sibling = own & ((1 << level.sibling_bits) - 1);
            const int column = min(i, level.column) + (own >> level.sibling_bits);
            int s = 0;
#pragma unroll
            for (int other = 1; other < kSources; ++other) s += column >= p.source[other].column;
            const Source& source = p.source[s];
            const int channel = column - p.level[source.level].column;
            const Place place = places[(s << kSiblingBits) + sibling];

            const int at = level.start[source.level] + channel;
            const int within = at % Columns;
            slot[b] = z + (at / Columns + sibling * level.own_lines) * stride
                + (within & ~3) * Frames + (within & 3);
            const Map* map = static_cast<const Map*>(source.maps) + frame * source.frame
                + static_cast<long long>(column - source.column) * source.plane + place.pixel;
            const float mean = __ldg(p.means + place.mean + channel);
#pragma unroll
            for (int f = 0; f < Frames; ++f) {
                const bool present = frame + f < p.frames;
                value[b][f] = present ? element(map, f * source.frame) - mean : 0.0f;
            }
        }
#pragma unroll
        for (int b = 0; b < batch; ++b) {
            if (first + b * static_cast<int>(blockDim.x) >= count) break;
#pragma unroll
            for (int f = 0; f < Frames; ++f) slot[b][4 * f] = value[b][f];
        }
    }
}

// Adds the products of the batch's chunks with z to the rows' dot products. Lines count on from
// the coarser levels' columns to the own ones: z_own is z, moved on to the lane's sibling.
template <typename Format, int Frames, int Strips, int Lines>
__device__ __forceinline__ void multiply(
        const Batch<Strips, Lines>& batch, const uint4* family, const int (&first)[Strips],
        int line, int longest, const Level& level, const float4* z, const float4* z_own,
        float (&dots)[Strips][Frames]) {
    constexpr int stride = Format::columns / 4 * Frames + 1;
#pragma unroll
    for (int u = 0; u < Lines; ++u) {
        const int at = line + u * kSplits;
        if (at >= longest) break;
        const float4* vector = (at < level.coarse_lines ? z : z_own) + at * stride;
        float scale[Strips];
        if (Format::scaled) {
            // No chunk crosses from one level's columns into the next level's.
            const int column = at * Format::columns;
            int block = 0;
#pragma unroll
            for (int l = 1; l < kLevels; ++l) block += column >= level.start[l];
#pragma unroll
            for (int s = 0; s < Strips; ++s) {
                const uint4* scales = family + (first[s] - 1) * kStrip;
                scale[s] = __ldg(reinterpret_cast<const float*>(scales) + block);
            }
        }
        // Unrolled further, the compiler fetches more of z in advance than registers can hold.
#pragma unroll (128 / (Format::columns * Frames))
        for (int q = 0; q < Format::columns / 4; ++q) {
            float4 w[Strips];
#pragma unroll
            for (int s = 0; s < Strips; ++s) {
                w[s] = Format::four(batch.chunk[s][u], q);
                if (Format::scaled) {
                    w[s] = make_float4(w[s].x * scale[s], w[s].y * scale[s],
                                       w[s].z * scale[s], w[s].w * scale[s]);
                }
            }
#pragma unroll
            for (int f = 0; f < Frames; ++f) {
                const float4 v = vector[q * Frames + f];
#pragma unroll
                for (int s = 0; s < Strips; ++s) {
                    dots[s][f] += w[s].x * v.x;
                    dots[s][f] += w[s].y * v.y;
                    dots[s][f] += w[s].z * v.z;
                    dots[s][f] += w[s].w * v.w;
                }
            }
        }
    }
}

// Adds values[0 .. Count) of lanes whose splits differ in `Bit`. Of several values each lane
// keeps one half and gives the other away, so that fewer travel, and fewer stay in registers.
template <int Bit, int Count, int Frames>
__device__ __forceinline__ void fold(float (&values)[Frames], int split) {
    constexpr int half = Count / 2;
    const bool upper = split & Bit;
#pragma unroll
    for (int i = 0; i < (half ? half : 1); ++i) {
        const float given = upper ? values[i] : values[i + half];
        const float kept = upper ? values[i + half] : values[i];
        values[i] = kept + __shfl_xor_sync(kWarp, given, Bit * kStrip);
    }
}

template <typename Format, int Frames>
__device__ __forceinline__ void mahalanobis(const Mahalanobis& p) {
    constexpr int strips = Frames == 1 ? 1 : 2;
    // Chunks in a lane's registers. Two will do where each meets 128 multiply-adds.
    constexpr int flight = Format::columns * Frames > 64 ? 2 : 4;
    constexpr int batch_lines = flight / strips;
    constexpr int stride = Format::columns / 4 * Frames + 1;
    const int thread = threadIdx.x, threads = blockDim.x;
    const int warp = thread / 32, warps = threads / 32;
    const int row = thread % kStrip, split = thread % 32 / kStrip;

    // Finest level first: it has the largest parts, and small ones at the end leave no tail.
    const int frame = static_cast<int>(blockIdx.x % p.groups) * Frames;
    unsigned block = blockIdx.x / p.groups;
    const bool first_block = block == 0;
    int index = p.levels - 1;
    while (block >= p.level[index].blocks) block -= p.level[index--].blocks;
    const Level& level = p.level[index];
    const int siblings = 1 << level.sibling_bits;
    const int family = static_cast<int>(block / level.parts);
    const int part = static_cast<int>(block % level.parts);
    const int position = family << level.sibling_bits;
    const uint4* chunks = p.weights + row + kStrip
        * (level.first_line + static_cast<long long>(family) * level.family_lines);

    // Strips, or pairs of them, are dealt out evenly to parts, then to their warps.
    const int items = (level.strips + strips - 1) / strips;
    const int parts = static_cast<int>(level.parts), team = parts * warps;
    int item = warp * parts + part;
    // Loading runs one batch ahead of multiplying, which needs these rows' length.
    Rows<strips> ahead = rows_of<Format, strips>(chunks, level, item);
    Batch<strips, batch_lines> batch = load<Format, batch_lines>(chunks, ahead, split);

    Place* places = reinterpret_cast<Place*>(shared);
    find_places(p, level, index, position, places);
    float4* vectors = shared + (kSources << kSiblingBits) * sizeof(Place) / sizeof(float4);
    float* z = reinterpret_cast<float*>(vectors);
    const int length = level.coarse_lines + siblings * level.own_lines;
    // Columns were padded to whole chunks: what lies there must be a number.
    for (int i = thread; i < length * stride; i += threads)
        vectors[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    __syncthreads();
    if (p.half_maps)
        gather<unsigned short, Format::columns, Frames>(p, level, places, frame, z);
    else
        gather<float, Format::columns, Frames>(p, level, places, frame, z);
    __syncthreads();

    const float4* z_own = vectors + (row & (siblings - 1)) * level.own_lines * stride;
    // After its splits are folded, a lane has `kept` frames of a row, from split * Frames / 4 on;
    // below four frames, `holders` lanes have the same one.
    constexpr int kept = Frames > kSplits ? Frames / kSplits : 1;
    constexpr int holders = Frames < kSplits ? kSplits / Frames : 1;
    float squares[kept] = {};
    for (; item < items; item += team) {
        const int longest = ahead.longest;
        int first[strips];
#pragma unroll
        for (int s = 0; s < strips; ++s)  // a missing strip takes any scales for its zeros
            first[s] = ahead.lines[s] ? ahead.first[s] : ahead.first[0];
        float dots[strips][Frames] = {};
        for (int line = 0; line < longest;) {
            const int at = line + split;
            line += batch_lines * kSplits;
            const bool last = line >= longest;
            if (last) ahead = rows_of<Format, strips>(chunks, level, item + team);
            const Batch<strips, batch_lines> coming =
                load<Format, batch_lines>(chunks, ahead, last ? split : line + split);
            multiply<Format, Frames>(
                batch, chunks, first, at, longest, level, vectors, z_own, dots);
            batch = coming;
        }
#pragma unroll
        for (int s = 0; s < strips; ++s) {
            fold<2, Frames>(dots[s], split);
            fold<1, (Frames > 1 ? Frames / 2 : 1)>(dots[s], split);
#pragma unroll
            for (int i = 0; i < kept; ++i) squares[i] += dots[s][i] * dots[s][i];
        }
    }

    // Rows of one sibling, then warps; z is done with, its memory serves for the sums.
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kept; ++i) {
        for (int other = siblings; other < kStrip; other *= 2)
            squares[i] += __shfl_xor_sync(kWarp, squares[i], other);
        if (split % holders == 0)
            z[(warp * Frames + split * Frames / kSplits + i) * kStrip + row] = squares[i];
    }
    __syncthreads();
    for (int i = thread; i < Frames << level.sibling_bits; i += threads) {
        const int sibling = i & (siblings - 1), f = i >> level.sibling_bits;
        if (frame + f >= p.frames) break;
        float sum = 0.0f;
        for (int w = 0; w < warps; ++w) sum += z[(w * Frames + f) * kStrip + sibling];
        const int raster = __ldg(p.pixels + level.pixels + position + sibling);
        p.squared[(frame + f) * p.frame + level.squared + part * level.positions + raster] = sum;
    }
    if (first_block && thread < Frames && frame + thread < p.frames) p.scores[frame + thread] = 0;
}

// mahalanobis_<format of the constants>_<frames per pass>
//   grid    (blocks of all levels * groups of frames)
//   block   256 threads, or fewer warps: any multiple of 32
//   shared  the larger of z, (coarse_lines + siblings * own_lines) * (columns * frames + 4) * 4
//           bytes over all levels, and the sums, 32 bytes per warp and frame
// The last argument is how many blocks must find registers on one multiprocessor: 4 blocks of 256
// threads leave 64 per thread, 3 leave 80, 2 leave 128. Before Turing the one-frame kernels do
// not fit in 64.
#define MAHALANOBIS(name, Format, Frames, blocks)                                     \
    extern "C" __global__ void __launch_bounds__(256, blocks)                         \
    mahalanobis_##name##_##Frames(const Mahalanobis p) { mahalanobis<Format, Frames>(p); }

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 750
#define ONE_FRAME 3
#else
#define ONE_FRAME 4
#endif

MAHALANOBIS(float32, Float32, 1, ONE_FRAME)
MAHALANOBIS(float32, Float32, 2, 3)
MAHALANOBIS(float32, Float32, 4, 2)
MAHALANOBIS(float32, Float32, 8, 2)
MAHALANOBIS(float16, Float16, 1, ONE_FRAME)
MAHALANOBIS(float16, Float16, 2, 3)
MAHALANOBIS(float16, Float16, 4, 2)
MAHALANOBIS(float16, Float16, 8, 2)
MAHALANOBIS(int8, Int8, 1, 3)
MAHALANOBIS(int8, Int8, 2, 2)
MAHALANOBIS(int8, Int8, 4, 2)
MAHALANOBIS(int8, Int8, 8, 2)

// ---------------------------------------------------------------------------------------------
// Score map A D A^T and image score, D the square root of the levels' sums; the map is 0 where
// nothing is judged.
//
// A row of A (bilinear upsampling, then a Gaussian cut off at 4 sigma) is zero but for a few
// neighbouring columns, its taps: 12 of 56 at the default size. A block makes one tile of the
// map: it takes the roots of the part of D that the tile depends on, combines rows, and then
// columns. Nothing goes through global memory between, and at the default size 112 blocks per
// frame keep a large GPU busy; parts of D are added up by several blocks, from the L2 cache.

struct Plane {
    int squared;   // where a level's planes start in a frame's result
    int parts;     // planes to be added; none for a level that there is not
    int width;
    int factor;    // pixels of D along one side of a pixel of the level
    int size;      // height * width of the level
};

struct Smooth {
    const float* squared;        // [N, frame]
    const float* row_taps;       // [row_count, height]
    const float* column_taps;    // [column_count, width]
    const int* row_first;        // [height]: the row of D that tap 0 belongs to, ascending
    const int* column_first;     // [width]
    const unsigned char* judged; // [height, width]: where the map is not 0; none: everywhere
    float* map;                  // [N, height, width]
    int* scores;                 // [N], float32 that are not negative, compared as integers
    long long frame;             // floats per frame of `squared`
    int height, width;           // of the map
    int row_count, column_count; // taps
    Plane plane[kLevels];
};

// smooth
//   grid    (ceil(width / 64), ceil(height / 8), N)
//   block   256 threads, any multiple of 32
//   shared  (rows + 8) * columns * 4 bytes, of the largest part of D that a tile depends on
extern "C" __global__ void __launch_bounds__(256, 4) smooth(const Smooth p) {
    const int thread = threadIdx.x, threads = blockDim.x;
    const int left = static_cast<int>(blockIdx.x) * kTileColumns;
    const int top = static_cast<int>(blockIdx.y) * kTileRows;
    const long long frame = blockIdx.z;
    const int tile_columns = min(kTileColumns, p.width - left);
    const int tile_rows = min(kTileRows, p.height - top);
    const int x0 = __ldg(p.column_first + left), y0 = __ldg(p.row_first + top);
    const int columns = __ldg(p.column_first + left + tile_columns - 1) + p.column_count - x0;
    const int rows = __ldg(p.row_first + top + tile_rows - 1) + p.row_count - y0;
    float* combined = reinterpret_cast<float*>(shared);  // [kTileRows, columns]
    float* distance = combined + kTileRows * columns;    // [rows, columns]
    const float* squared = p.squared + frame * p.frame;

    for (int i = thread; i < rows * columns; i += threads) {
        const int y = y0 + i / columns, x = x0 + i % columns;
        const float* at[kLevels];
        float sum = 0.0f;
        // The first four parts of every level in flight together; few levels have more.
#pragma unroll
        for (int l = 0; l < kLevels; ++l) {
            const Plane& plane = p.plane[l];
            at[l] = squared + plane.squared + y / plane.factor * plane.width + x / plane.factor;
#pragma unroll
            for (int part = 0; part < 4; ++part)
                if (part < plane.parts) sum += __ldg(at[l] + part * plane.size);
        }
#pragma unroll
        for (int l = 0; l < kLevels; ++l) {
            for (int part = 4; part < p.plane[l].parts; ++part)
                sum += __ldg(at[l] + part * p.plane[l].size);
        }
        // Not fmaxf, which makes a number of NaN.
        distance[i] = sqrtf(sum < 0.0f ? 0.0f : sum);
    }
    __syncthreads();
    for (int i = thread; i < tile_rows * columns; i += threads) {
        const int y = top + i / columns, x = i % columns;
        const float* column = distance + (__ldg(p.row_first + y) - y0) * columns + x;
        float sum = 0.0f;
#pragma unroll 4
        for (int k = 0; k < p.row_count; ++k)
            sum += __ldg(p.row_taps + k * p.height + y) * column[k * columns];
        combined[i] = sum;
    }
    __syncthreads();
    int best = 0;
    for (int i = thread; i < tile_rows * kTileColumns; i += threads) {
        const int x = left + i % kTileColumns, y = i / kTileColumns;
        if (x >= p.width) continue;
        const float* row = combined + y * columns + __ldg(p.column_first + x) - x0;
        float sum = 0.0f;
#pragma unroll 4
        for (int k = 0; k < p.column_count; ++k)
            sum += __ldg(p.column_taps + k * p.width + x) * row[k];
        const int pixel = (top + y) * p.width + x;
        if (p.judged != nullptr && !__ldg(p.judged + pixel)) sum = 0.0f;
        p.map[frame * p.height * p.width + pixel] = sum;
        // Floats that are not negative are ordered like their bits, and NaN, made positive
        // here, comes after infinity: it becomes the maximum.
        best = max(best, sum != sum ? 0x7fc00000 : __float_as_int(sum));
    }
    for (int other = 16; other; other /= 2)
        best = max(best, __shfl_xor_sync(kWarp, best, other));
    if (thread % 32 == 0) atomicMax(p.scores + frame, best);
}
