// A camera's frame to the backbone's input: means of whole blocks, filter, crop, pixel format.
//
// Whole numbers alone, the same and in the same order as padim_edge/images/resize.py and
// formats.py have them, so that the result is theirs bit for bit. Tables, offsets and launch
// geometry are made in prepare.py, the parameter structs stand in launch.py too. Self-contained,
// as kernels.cu.
//
// One launch a frame, one block a tile of the result. For each plane of the frame (one for
// interleaved formats, luma and chroma apart for the others) a block goes
//
//     raw rows -> sums over the height of a block -> means of blocks (8 bits)
//              -> filtered across (8 bits) -> filtered down (8 bits)
//
// in shared memory, and mixes red, green and blue of what the planes gave at the end. Nothing goes
// through global memory between. A frame is read once from DRAM; rows and columns of blocks that
// neighbouring tiles share, a quarter at 1080p, are read again by each, from the L2 cache.
//
// Raw rows are read in words of 4 bytes, neighbouring lanes neighbouring words, whatever the
// format: 1080p in RGB is 1.6 million loads, and a lane has several rows of them under way.

namespace prepare {

constexpr int kPlanes = 3;
constexpr int kValues = 4;
constexpr int kTileRows = 8;
constexpr int kTileColumns = 32;
constexpr int kBits = 22;  // of a tap

struct Plane {
    const unsigned char* pixels;
    const int* row_taps;            // [row_count, height of the image]
    const int* column_taps;         // [column_count, width of the image]
    const int* row_first;           // [height]: the row of blocks that tap 0 belongs to, ascending
    const int* column_first;        // [width]
    long long pitch;                // bytes from one row to the next
    int height, width;              // in pixels
    int channels;                   // values of a pixel, of which...
    int values;                     // ...so many are used: ...
    int channel[kValues];           // ...these
    int block_height, block_width;  // in pixels
    int row_count, column_count;    // taps
    int strip;                      // rows of blocks that are summed at one time
    int stride;                     // words of shared memory for the sums of one of them
};

struct Frame {
    unsigned char* image;       // [height, width, 3]
    int height, width;
    int planes, values;         // values: of all planes
    unsigned white;             // the value that becomes 255
    int means, narrow, mixed;   // where they start in shared memory, behind the sums
    int mix[3][kValues + 1];    // 16-bit fixed point; the last is constant
    Plane plane[kPlanes];
};

__device__ __forceinline__ int clip(int value) { return min(max(value, 0), 255); }

// 4 bytes of a row, or those that it still has.
__device__ __forceinline__ unsigned word_at(const unsigned char* at, int left, bool aligned) {
    if (aligned && left >= 4) return __ldg(reinterpret_cast<const unsigned*>(at));
    unsigned word = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i)
        if (i < left) word |= static_cast<unsigned>(__ldg(at + i)) << 8 * i;
    return word;
}

// How the sums of a word's values, over the rows of a block, fit into two words; and the mean of
// n values. A block has at most 256 rows, and 65536 pixels.
struct Eight {
    static constexpr int bytes = 1;
    static __device__ __forceinline__ unsigned low(unsigned word) { return word & 0x00ff00ffu; }
    static __device__ __forceinline__ unsigned high(unsigned word) {
        return word >> 8 & 0x00ff00ffu;
    }
    // Bytes 0 and 2 were added up in one word, 1 and 3 in the other: into their order.
    static __device__ __forceinline__ unsigned first(unsigned low, unsigned high) {
        return __byte_perm(low, high, 0x5410);
    }
    static __device__ __forceinline__ unsigned second(unsigned low, unsigned high) {
        return __byte_perm(low, high, 0x7632);
    }
    static __device__ __forceinline__ unsigned sum(const unsigned* sums, int index) {
        return sums[index >> 1] >> 16 * (index & 1) & 0xffffu;
    }
    static __device__ __forceinline__ unsigned mean(unsigned sum, unsigned n, unsigned) {
        return (sum + n / 2) / n;
    }
};

struct Sixteen {
    static constexpr int bytes = 2;
    static __device__ __forceinline__ unsigned low(unsigned word) { return word & 0xffffu; }
    static __device__ __forceinline__ unsigned high(unsigned word) { return word >> 16; }
    static __device__ __forceinline__ unsigned first(unsigned low, unsigned) { return low; }
    static __device__ __forceinline__ unsigned second(unsigned, unsigned high) { return high; }
    static __device__ __forceinline__ unsigned sum(const unsigned* sums, int index) {
        return sums[index];
    }
    static __device__ __forceinline__ unsigned mean(unsigned sum, unsigned n, unsigned white) {
        const unsigned long long whole = static_cast<unsigned long long>(n) * white;
        const unsigned long long mean = (sum * 255ull + whole / 2) / whole;
        return mean < 255 ? static_cast<unsigned>(mean) : 255u;
    }
};

// Sums over the height of blocks, of `rows` rows of blocks from `row` on; bytes from `begin`, a
// multiple of 4, to `end` of the raw rows.
template <typename Value>
__device__ __forceinline__ void add_rows(
        const Plane& plane, int row, int rows, int begin, int end, unsigned* sums) {
    const int words = (end - begin + 3) / 4;
    const bool aligned =
        (reinterpret_cast<unsigned long long>(plane.pixels) | plane.pitch) % 4 == 0;
    for (int i = threadIdx.x; i < rows * words; i += blockDim.x) {
        const int strip_row = i / words, word = i % words;
        const int y = (row + strip_row) * plane.block_height, left = end - begin - 4 * word;
        const int count = min(plane.block_height, plane.height - y);
        const unsigned char* at = plane.pixels + y * plane.pitch + begin + 4 * word;
        unsigned low = 0, high = 0;
#pragma unroll 4
        for (int k = 0; k < count; ++k) {
            const unsigned raw = word_at(at + k * plane.pitch, left, aligned);
            low += Value::low(raw);
            high += Value::high(raw);
        }
        unsigned* to = sums + strip_row * plane.stride + 2 * word;
        to[0] = Value::first(low, high);
        to[1] = Value::second(low, high);
    }
}

template <typename Value>
__device__ __forceinline__ void prepare(const Frame& p, unsigned* memory) {
    const int thread = threadIdx.x, threads = blockDim.x;
    const int left = static_cast<int>(blockIdx.x) * kTileColumns;
    const int top = static_cast<int>(blockIdx.y) * kTileRows;
    const int tile_columns = min(kTileColumns, p.width - left);
    const int tile_rows = min(kTileRows, p.height - top);
    unsigned* sums = memory;
    unsigned char* means = reinterpret_cast<unsigned char*>(memory) + p.means;
    unsigned char* narrow = reinterpret_cast<unsigned char*>(memory) + p.narrow;
    unsigned char* mixed = reinterpret_cast<unsigned char*>(memory) + p.mixed;

    int value = 0;  // that the planes before have given
    for (int index = 0; index < p.planes; ++index) {
        const Plane& plane = p.plane[index];
        const int values = plane.values;
        const int x0 = __ldg(plane.column_first + left), y0 = __ldg(plane.row_first + top);
        const int columns =
            __ldg(plane.column_first + left + tile_columns - 1) + plane.column_count - x0;
        const int rows = __ldg(plane.row_first + top + tile_rows - 1) + plane.row_count - y0;
        const int pixel = plane.channels * Value::bytes;
        const int begin = x0 * plane.block_width * pixel & ~3;
        const int end = min((x0 + columns) * plane.block_width, plane.width) * pixel;

        for (int row = 0; row < rows; row += plane.strip) {
            const int strip = min(plane.strip, rows - row);
            add_rows<Value>(plane, y0 + row, strip, begin, end, sums);
            __syncthreads();
            for (int i = thread; i < strip * columns * values; i += threads) {
                const int v = i % values, column = i / values % columns, r = i / values / columns;
                const int x = (x0 + column) * plane.block_width;
                const int y = (y0 + row + r) * plane.block_height;
                const int across = min(plane.block_width, plane.width - x);
                const int down = min(plane.block_height, plane.height - y);
                const int first = x * plane.channels + plane.channel[v] - begin / Value::bytes;
                unsigned sum = 0;
                for (int k = 0; k < across; ++k)
                    sum += Value::sum(sums + r * plane.stride, first + k * plane.channels);
                const unsigned n = static_cast<unsigned>(across * down);
                means[row * columns * values + i] =
                    static_cast<unsigned char>(Value::mean(sum, n, p.white));
            }
            __syncthreads();
        }
        for (int i = thread; i < rows * tile_columns * values; i += threads) {
            const int v = i % values, column = left + i / values % tile_columns;
            const int r = i / values / tile_columns;
            const int first = __ldg(plane.column_first + column) - x0;
            const unsigned char* from = means + (r * columns + first) * values + v;
            int sum = 1 << (kBits - 1);
            for (int k = 0; k < plane.column_count; ++k)
                sum += from[k * values] * __ldg(plane.column_taps + k * p.width + column);
            narrow[i] = static_cast<unsigned char>(clip(sum >> kBits));
        }
        __syncthreads();
        for (int i = thread; i < tile_rows * tile_columns * values; i += threads) {
            const int line = tile_columns * values;
            const int r = i / line, row = top + r;
            const int first = __ldg(plane.row_first + row) - y0;
            const unsigned char* from = narrow + first * line + i % line;
            int sum = 1 << (kBits - 1);
            for (int k = 0; k < plane.row_count; ++k)
                sum += from[k * line] * __ldg(plane.row_taps + k * p.height + row);
            const int v = value + i % values, column = i % line / values;
            mixed[(v * kTileRows + r) * kTileColumns + column] =
                static_cast<unsigned char>(clip(sum >> kBits));
        }
        value += values;
    }
    __syncthreads();
    for (int i = thread; i < tile_rows * tile_columns * 3; i += threads) {
        const int colour = i % 3, column = i / 3 % tile_columns, r = i / 3 / tile_columns;
        int sum = p.mix[colour][kValues] + (1 << 15);
        for (int v = 0; v < p.values; ++v)
            sum += p.mix[colour][v] * mixed[(v * kTileRows + r) * kTileColumns + column];
        p.image[((top + r) * p.width + left + column) * 3 + colour] =
            static_cast<unsigned char>(clip(sum >> 16));
    }
}

}  // namespace prepare

extern __shared__ float4 shared[];

// prepare_<bits of a value>
//   grid    (ceil(width / 32), ceil(height / 8))
//   block   256 threads, any multiple of 32
//   shared  sums, means, values filtered across, and values to be mixed, of the largest tile
#define PREPARE(bits, Value)                                                 \
    extern "C" __global__ void __launch_bounds__(256, 4)                     \
    prepare_##bits(const prepare::Frame p) {                                 \
        prepare::prepare<prepare::Value>(p, reinterpret_cast<unsigned*>(shared)); \
    }

PREPARE(8, Eight)
PREPARE(16, Sixteen)
