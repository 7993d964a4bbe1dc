// ConvNeXt's blocks and downsampling for inference on CPUs; compiled and called by native.py, which explains the design.
//
// Vectors have 16 values with AVX-512, 8 with AVX2 and FMA, 4 with NEON: native.py defines LANES, COLUMNS and MAX_VECTORS, and
// the functions from here to "total" are all that differs. Only AVX-512 has products of bfloat16.
//
// A tile is a number of consecutive positions (n, h, w). One thread computes all steps of a tile before the next: the
// normalised and hidden values are in that thread's scratch memory, small enough for the level-2 cache. Maps are
// (images, height, width, channels), in float32 or (narrow) bfloat16. The products are in float32, or (half) of pairs of
// bfloat16 summed in float32; such a pair is as wide as one float32, and both are called words here. All memory is passed
// as float *, also where it contains bfloat16.

#include <math.h>
#include <omp.h>
#include <stddef.h>
#include <stdint.h>
#if LANES == 4
#include <arm_neon.h>
#else
#include <immintrin.h>
#endif

#define MAX_ROWS 12     // rows of a product's tile
#define INLINE static inline __attribute__((always_inline))

// Rows of a product's tile of 1 to 4 vectors: its sums, a row of vectors and a value of the input fill the registers.
#if LANES == 8
#define TILES(X, ...) X(12, 1, __VA_ARGS__) X(6, 2, __VA_ARGS__) X(4, 3, __VA_ARGS__) X(3, 4, __VA_ARGS__)
static const ptrdiff_t ROWS[] = {12, 6, 4, 3};
#else
#define TILES(X, ...) X(12, 1, __VA_ARGS__) X(10, 2, __VA_ARGS__) X(8, 3, __VA_ARGS__) X(6, 4, __VA_ARGS__)
static const ptrdiff_t ROWS[] = {12, 10, 8, 6};
#endif

// "+", "-" and "*" of vectors are the compiler's.
#if LANES == 4
typedef float32x4_t Vector;
INLINE Vector read_vector(const float *from) { return vld1q_f32(from); }
INLINE void write_vector(float *to, Vector values) { vst1q_f32(to, values); }
INLINE Vector repeat(float value) { return vdupq_n_f32(value); }
INLINE Vector fused(Vector a, Vector b, Vector sum) { return vfmaq_f32(sum, a, b); }
INLINE Vector least(Vector a, Vector b) { return vminq_f32(a, b); }
INLINE Vector greatest(Vector a, Vector b) { return vmaxq_f32(a, b); }
INLINE float total(Vector values) { return vaddvq_f32(values); }
#else
#if LANES == 8
#define OF(name) _mm256_##name##_ps
typedef __m256 Vector;
INLINE float total(Vector values) {
  __m128 sums = _mm_add_ps(_mm256_castps256_ps128(values), _mm256_extractf128_ps(values, 1));
  sums = _mm_add_ps(sums, _mm_movehl_ps(sums, sums));
  return _mm_cvtss_f32(_mm_add_ss(sums, _mm_movehdup_ps(sums)));
}
#else
#define OF(name) _mm512_##name##_ps
typedef __m512 Vector;
INLINE float total(Vector values) { return _mm512_reduce_add_ps(values); }
#endif
INLINE Vector read_vector(const float *from) { return OF(loadu)(from); }
INLINE void write_vector(float *to, Vector values) { OF(storeu)(to, values); }
INLINE Vector repeat(float value) { return OF(set1)(value); }
INLINE Vector fused(Vector a, Vector b, Vector sum) { return OF(fmadd)(a, b, sum); }
// Of a NaN as the second of the two the result is that NaN.
INLINE Vector least(Vector a, Vector b) { return OF(min)(a, b); }
INLINE Vector greatest(Vector a, Vector b) { return OF(max)(a, b); }
#endif
typedef uint32_t Integers __attribute__((vector_size(4 * LANES)));

INLINE Vector inverse(Vector divisor) {
#if LANES == 16
  const Vector guess = _mm512_rcp14_ps(divisor);
  return guess * _mm512_fnmadd_ps(divisor, guess, repeat(2.0f));
#else
  return repeat(1.0f) / divisor;
#endif
}

// Accumulators stay in registers only if no loop runs over them: these macros unroll the loops.
#define EACH_4(X) X(0) X(1) X(2) X(3)
#define EACH_4_OF(X, i) X(i, 0) X(i, 1) X(i, 2) X(i, 3)
#define EACH_11(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10)
#define EACH_11_OF(X, i) X(i, 0) X(i, 1) X(i, 2) X(i, 3) X(i, 4) X(i, 5) X(i, 6) X(i, 7) X(i, 8) X(i, 9) X(i, 10)
#define EACH_12(X) EACH_11(X) X(11)
#define EACH_14(X) EACH_12(X) X(12) X(13)
#define EACH_24(X) EACH_14(X) X(14) X(15) X(16) X(17) X(18) X(19) X(20) X(21) X(22) X(23)

// The fields are mirrored in library.py.
typedef struct {
  int64_t images, height, width, channels, hidden, side;
  int64_t span;     // positions that a tile does not cross: all, or those of one image
  int64_t tile;     // positions of a tile
  int64_t threads;
  int64_t scratch;  // words of each thread's memory
  float eps;
  const float *conv, *conv_bias;  // (side, side, channels), (channels)
  const float *scale, *shift;     // weight and bias of the norm, (channels)
  const float *first, *first_bias, *second, *second_bias;  // weights as native.py packs them
  const float *tail;                                       // polynomials of Phi(-a), see gelu_of_half
} Block;

typedef struct {
  int64_t images, height, width;        // size of the input
  int64_t channels, outputs;            // channels of input and output
  int64_t tile, threads, scratch;       // as in Block
  float eps;
  const float *scale, *shift;           // weight and bias of the norm, (channels)
  const float *weight, *bias;           // of the convolution, as native.py packs them
} Downsample;

static ptrdiff_t smaller(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }

INLINE void store(float *to, ptrdiff_t at, Vector values, const int half) {
#ifdef __AVX512BF16__
  if (half) {
    _mm256_storeu_si256((__m256i *)((uint16_t *)to + at), (__m256i)_mm512_cvtneps_pbh(values));
    return;
  }
#endif
  (void)half;
  write_vector(to + at, values);
}

INLINE Vector load(const float *from, ptrdiff_t at, const int half) {
#ifdef __AVX512BF16__
  if (half) {
    const __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)((const uint16_t *)from + at)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
  }
#endif
  (void)half;
  return read_vector(from + at);
}

// Address of a value in memory that contains bfloat16 (half) or float32.
INLINE float *place(const float *memory, ptrdiff_t at, const int half) {
  return (float *)((char *)memory + at * (half ? 2 : 4));
}

INLINE Vector multiply_add(Vector a, Vector b, Vector sum, const int half) {
#ifdef __AVX512BF16__
  if (half) return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
#endif
  (void)half;
  return fused(a, b, sum);
}

// LANES channels of the depthwise convolution at COLUMNS positions of a row. Each value of the input is read once for a row
// of the kernel, and multiplied with all weights of that row.
#define BEGIN(c) if (c < COLUMNS) sums[c % COLUMNS] = read_vector(bias);
#define WEIGHT(k) if (k < side) weights[k] = read_vector(weight + (line * side + k) * channels);
#define MEET(c, k) if (k < side && c >= k && c - k < COLUMNS) \
    sums[(c - k + COLUMNS) % COLUMNS] = fused(value, weights[k], sums[(c - k + COLUMNS) % COLUMNS]);
#define READ(c) if (c < COLUMNS + side - 1 && left + c >= 0 && left + c < width) { \
    const Vector value = load(image, (above * width + left + c) * channels, narrow); \
    EACH_11_OF(MEET, c) \
  }
#define WRITE(c) if (c < COLUMNS) write_vector(out + c * channels, sums[c % COLUMNS]);
INLINE void convolve(const float *image, ptrdiff_t height, ptrdiff_t width, ptrdiff_t channels, ptrdiff_t y, ptrdiff_t x,
                     const float *weight, const float *bias, float *out, const int side, const int narrow) {
  const ptrdiff_t left = x - side / 2;
  Vector sums[COLUMNS];
  EACH_14(BEGIN)
  for (ptrdiff_t line = 0; line < side; line++) {
    const ptrdiff_t above = y + line - side / 2;
    if (above < 0 || above >= height) continue;
    Vector weights[11];
    EACH_11(WEIGHT)
    EACH_24(READ)
  }
  EACH_14(WRITE)
}

#define CONVOLVE(side, narrow) \
  __attribute__((noinline)) static void convolve_##side##_##narrow( \
      const float *image, ptrdiff_t height, ptrdiff_t width, ptrdiff_t channels, ptrdiff_t y, ptrdiff_t x, \
      const float *weight, const float *bias, float *out) { \
    convolve(image, height, width, channels, y, x, weight, bias, out, side, narrow); \
  }
CONVOLVE(3, 0) CONVOLVE(5, 0) CONVOLVE(7, 0) CONVOLVE(9, 0) CONVOLVE(11, 0)
#ifdef __AVX512BF16__
CONVOLVE(3, 1) CONVOLVE(5, 1) CONVOLVE(7, 1) CONVOLVE(9, 1) CONVOLVE(11, 1)
#endif

typedef void Convolve(const float *, ptrdiff_t, ptrdiff_t, ptrdiff_t, ptrdiff_t, ptrdiff_t, const float *, const float *,
                      float *);
static Convolve *const CONVOLUTIONS[][5] = {{convolve_3_0, convolve_5_0, convolve_7_0, convolve_9_0, convolve_11_0},
#ifdef __AVX512BF16__
                                            {convolve_3_1, convolve_5_1, convolve_7_1, convolve_9_1, convolve_11_1},
#endif
};

// Layer normalisation of one position's channels: those of x from `from` on, to those of out from `to` on.
INLINE void normalise(const float *x, ptrdiff_t from, ptrdiff_t channels, const float *scale, const float *shift, float eps,
                      float *out, ptrdiff_t to, const int half, const int narrow) {
  Vector sum = repeat(0.0f), squares = sum;
  for (ptrdiff_t c = 0; c < channels; c += LANES) sum = sum + load(x, from + c, narrow);
  const Vector mean = repeat(total(sum) / channels);
  for (ptrdiff_t c = 0; c < channels; c += LANES) {
    const Vector difference = load(x, from + c, narrow) - mean;
    squares = fused(difference, difference, squares);
  }
  const Vector factor = repeat(1.0f / sqrtf(total(squares) / channels + eps));
  for (ptrdiff_t c = 0; c < channels; c += LANES) {
    const Vector normal = (load(x, from + c, narrow) - mean) * factor;
    store(out, to + c, fused(normal, read_vector(scale + c), read_vector(shift + c)), half);
  }
}

// max(x, 0) - |x| Phi(-|x|), which is x Phi(x). Phi(-a) is exp(-a^2 / 2) times a polynomial of t = 1 / (1 + 0.28 a), as in
// Abramowitz and Stegun 7.1.26; its coefficients, and those of 2^f for -0.5 <= f <= 0.5, are fits of least largest error:
// 3.3e-9 of GELU, 7.5e-8 of the power. Beyond 13 the power would leave float32. The sum with 1.5 * 2^23 is rounded to a whole
// number, whose lowest bits are added to the exponent of 2^f.
INLINE Vector gelu_of_float(Vector x) {
  const Vector a = least(repeat(13.0f), (Vector)((Integers)x & 0x7fffffff));
  const Vector t = inverse(fused(a, repeat(0.28f), repeat(1.0f)));
  const Vector exponent = a * a * repeat(-0.72134752f);
  const Vector shifted = exponent + repeat(0x1.8p23f), f = exponent - (shifted - repeat(0x1.8p23f));
  Vector power = repeat(0.0013276467f);
  power = fused(power, f, repeat(0.0096755417f));
  power = fused(power, f, repeat(0.0555071329f));
  power = fused(power, f, repeat(0.2402211972f));
  power = fused(power, f, repeat(0.6931469671f));
  power = fused(power, f, repeat(1.0000000717f));
  power = (Vector)((Integers)power + ((Integers)shifted << 23));
  Vector tail = repeat(-0.10755499f);
  tail = fused(tail, t, repeat(0.39699039f));
  tail = fused(tail, t, repeat(-0.24851859f));
  tail = fused(tail, t, repeat(0.27818286f));
  tail = fused(tail, t, repeat(0.06379125f));
  tail = fused(tail, t, repeat(0.11710903f));
  return greatest(repeat(0.0f), x) - tail * t * (power * a);
}

// The same for results that are rounded to bfloat16: Phi(-a) from polynomials of second degree between 32 points, which
// are SEGMENTS apart, with an error of at most 8e-6. The sum with 2^23 is rounded to a whole number, whose bits are the index.
#ifdef __AVX512BF16__
#define SEGMENTS (31.0f / 4.75f)
INLINE __m512 gelu_of_half(__m512 x, const float *tail) {
  const __m512 a = _mm512_min_ps(_mm512_set1_ps(4.75f), _mm512_abs_ps(x));
  const __m512 shifted = _mm512_fmadd_ps(a, _mm512_set1_ps(SEGMENTS), _mm512_set1_ps(0x1p23f));
  const __m512i index = _mm512_castps_si512(shifted);
  const __m512 f = _mm512_fmsub_ps(a, _mm512_set1_ps(SEGMENTS), _mm512_sub_ps(shifted, _mm512_set1_ps(0x1p23f)));
  __m512 value = _mm512_permutex2var_ps(_mm512_loadu_ps(tail + 64), index, _mm512_loadu_ps(tail + 80));
  value = _mm512_fmadd_ps(value, f, _mm512_permutex2var_ps(_mm512_loadu_ps(tail + 32), index, _mm512_loadu_ps(tail + 48)));
  value = _mm512_fmadd_ps(value, f, _mm512_permutex2var_ps(_mm512_loadu_ps(tail), index, _mm512_loadu_ps(tail + 16)));
  return _mm512_fnmadd_ps(value, a, _mm512_max_ps(_mm512_setzero_ps(), x));
}
#endif

INLINE Vector gelu(Vector x, const float *tail, const int half) {
#ifdef __AVX512BF16__
  if (half) return gelu_of_half(x, tail);
#endif
  (void)tail, (void)half;
  return gelu_of_float(x);
}

// A tile of a product, `rows` x `vectors` * 16: rows of `words` words times a panel of the weight (words, vectors, 16). Its
// results are those of `out` from `at` on, of `left` rows at most where it matters.
#define SUM(i, j) if (j < vectors) sums[i][j] = read_vector(bias + j * LANES);
#define SUMS(i) if (i < rows) { EACH_4_OF(SUM, i) }
#define PANEL(j) if (j < vectors) columns[j] = read_vector(panel + (word * vectors + j) * LANES);
#define ADD(i, j) if (j < vectors) sums[i][j] = multiply_add(value, columns[j], sums[i][j], half);
#define ADDS(i) if (i < rows) { const Vector value = repeat(x[i * words + word]); EACH_4_OF(ADD, i) }
#define PRODUCT \
  Vector sums[MAX_ROWS][4]; \
  EACH_12(SUMS) \
  for (ptrdiff_t word = 0; word < words; word++) { \
    Vector columns[4]; \
    EACH_4(PANEL) \
    EACH_12(ADDS) \
  }

#define ACTIVE(i, j) if (j < vectors) { \
    store(out, at + i * width + j * LANES, gelu(sums[i][j], tail, half), half); \
  }
#define ACTIVES(i) if (i < rows) { EACH_4_OF(ACTIVE, i) }
INLINE void first_tile(const float *x, ptrdiff_t words, const float *panel, const float *bias, const float *tail, float *out,
                       ptrdiff_t at, ptrdiff_t width, const int rows, const int vectors, const int half) {
  PRODUCT
  EACH_12(ACTIVES)
}

#define RESULT(i, j) if (j < vectors) { \
    const ptrdiff_t to = at + i * width + j * LANES; \
    if (residual) sums[i][j] += load(input, to, narrow); \
    store(out, to, sums[i][j], narrow); \
  }
#define RESULTS(i) if (i < rows && i < left) { EACH_4_OF(RESULT, i) }
INLINE void second_tile(const float *x, ptrdiff_t words, const float *panel, const float *bias, const float *input,
                        float *out, ptrdiff_t at, ptrdiff_t width, ptrdiff_t left, const int rows, const int vectors,
                        const int half, const int narrow, const int residual) {
  PRODUCT
  EACH_12(RESULTS)
}

// Separate functions: within a larger one the compiler has no registers left for the sums.
#define FIRST(rows, vectors, name, half) \
  __attribute__((noinline)) static void first_##name##_##vectors( \
      const float *x, ptrdiff_t words, const float *panel, const float *bias, const float *tail, float *out, ptrdiff_t at, \
      ptrdiff_t width, ptrdiff_t left) { \
    (void)left; \
    first_tile(x, words, panel, bias, tail, out, at, width, rows, vectors, half); \
  }
#define SECOND(rows, vectors, name, half, narrow, residual) \
  __attribute__((noinline)) static void second_##name##_##vectors( \
      const float *x, ptrdiff_t words, const float *panel, const float *bias, const float *input, float *out, ptrdiff_t at, \
      ptrdiff_t width, ptrdiff_t left) { \
    second_tile(x, words, panel, bias, input, out, at, width, left, rows, vectors, half, narrow, residual); \
  }
#define NAMES(start) {start##_1, start##_2, start##_3, start##_4}
TILES(FIRST, float, 0)
TILES(SECOND, float, 0, 0, 1)
TILES(SECOND, alone_float, 0, 0, 0)
#ifdef __AVX512BF16__
TILES(FIRST, half, 1)
TILES(SECOND, half, 1, 0, 1)
TILES(SECOND, narrow, 1, 1, 1)
TILES(SECOND, alone_half, 1, 1, 0)
#define AND_NAMES(start) , NAMES(start)
#else
#define AND_NAMES(start)
#endif

typedef void Tile(const float *, ptrdiff_t, const float *, const float *, const float *, float *, ptrdiff_t, ptrdiff_t,
                  ptrdiff_t);
static Tile *const FIRSTS[][4] = {NAMES(first_float) AND_NAMES(first_half)};
static Tile *const SECONDS[][4] = {NAMES(second_float) AND_NAMES(second_half) AND_NAMES(second_narrow)};
static Tile *const ALONE[][4] = {NAMES(second_alone_float) AND_NAMES(second_alone_half)};

// Memory of a thread, in words: a row of the convolution's output, and the normalised and the hidden values of a tile.
// The products' last rows may reach beyond the tile; the values read there do not affect the output.
typedef struct {
  float *line, *normal, *hidden;
} Scratch;

static Scratch scratch_of(const Block *block, float *all, int half) {
  float *mine = all + omp_get_thread_num() * block->scratch;
  float *normal = mine + (smaller(block->tile, block->width) + COLUMNS) * block->channels;
  return (Scratch){mine, normal, normal + (block->tile + MAX_ROWS) * block->channels / (half ? 2 : 1)};
}

// Convolution and norm of the positions from `begin` to `end`.
INLINE void depthwise(const Block *block, const float *x, ptrdiff_t begin, ptrdiff_t end, Scratch scratch, const int half,
                      const int narrow) {
  const ptrdiff_t channels = block->channels, width = block->width, height = block->height;
  Convolve *const convolution = CONVOLUTIONS[narrow][(block->side - 3) / 2];
  for (ptrdiff_t at = begin; at < end;) {
    const ptrdiff_t left = at % width, right = smaller(width, left + end - at), row = at / width % height;
    const ptrdiff_t image = at / width / height * height * width * channels;
    for (ptrdiff_t c = 0; c < channels; c += LANES)
      for (ptrdiff_t w = left; w < right; w += COLUMNS)
        convolution(place(x, image + c, narrow), height, width, channels, row, w, block->conv + c, block->conv_bias + c,
                    scratch.line + (w - left) * channels + c);
    for (ptrdiff_t w = left; w < right; w++)
      normalise(scratch.line, (w - left) * channels, channels, block->scale, block->shift, block->eps, scratch.normal,
                (at - begin + w - left) * channels, half, 0);
    at += right - left;
  }
}

// A product of so many rows of `words` words, whose results are `width` channels of `out` from `at` on; `other` is what the
// tiles need besides.
INLINE void multiply(Tile *const *tiles, const float *x, ptrdiff_t words, const float *weight, const float *bias,
                     const float *other, float *out, ptrdiff_t at, ptrdiff_t width, ptrdiff_t rows) {
  const ptrdiff_t vectors = width / LANES, panels = (vectors + MAX_VECTORS - 1) / MAX_VECTORS;
  for (ptrdiff_t panel = 0; panel < panels; panel++) {
    const ptrdiff_t from = panel * vectors / panels, many = (panel + 1) * vectors / panels - from;
    for (ptrdiff_t row = 0; row < rows; row += ROWS[many - 1])
      tiles[many - 1](x + row * words, words, weight + from * LANES * words, bias + from * LANES, other, out,
                      at + row * width + from * LANES, width, rows - row);
  }
}

// First product and GELU of so many normalised rows.
INLINE void expand(const Block *block, ptrdiff_t rows, Scratch scratch, const int half) {
  multiply(FIRSTS[half], scratch.normal, block->channels / (half ? 2 : 1), block->first, block->first_bias, block->tail,
           scratch.hidden, 0, block->hidden, rows);
}

// Second product of so many hidden rows, and residual, at the positions from `begin`.
INLINE void project(const Block *block, const float *x, float *out, ptrdiff_t begin, ptrdiff_t rows, Scratch scratch,
                    const int half, const int narrow) {
  multiply(SECONDS[half + narrow], scratch.hidden, block->hidden / (half ? 2 : 1), block->second, block->second_bias, x, out,
           begin * block->channels, block->channels, rows);
}

// Hidden values of a tile to `hidden`, and the sums of their squares to `squares`.
INLINE void keep(const Block *block, Scratch scratch, ptrdiff_t begin, ptrdiff_t rows, float *hidden, float *squares,
                 const int half) {
  for (ptrdiff_t c = 0; c < block->hidden; c += LANES) {
    Vector sum = repeat(0.0f);
    for (ptrdiff_t row = 0; row < rows; row++) {
      const Vector value = load(scratch.hidden, row * block->hidden + c, half);
      store(hidden, (begin + row) * block->hidden + c, value, half);
      sum = fused(value, value, sum);
    }
    write_vector(squares + c, sum);
  }
}

// The way back: hidden values of a tile from `hidden`, times the factors of their channels.
INLINE void scale(const Block *block, Scratch scratch, ptrdiff_t begin, ptrdiff_t rows, const float *hidden,
                  const float *factors, const int half) {
  for (ptrdiff_t row = 0; row < rows; row++)
    for (ptrdiff_t c = 0; c < block->hidden; c += LANES) {
      const Vector value = load(hidden, (begin + row) * block->hidden + c, half);
      store(scratch.hidden, row * block->hidden + c, value * read_vector(factors + c), half);
    }
}

// The steps of a block, tile by tile, divided between the threads: all, or those before the response normalisation, or
// those from it on. `squares` has a row for each tile, `factors` one for each image.
enum { WHOLE, BEFORE, AFTER };
INLINE void run(const Block *block, const float *x, float *out, float *hidden, float *squares, const float *factors,
                float *all, const int step, const int half, const int narrow) {
  const ptrdiff_t total = block->images * block->height * block->width, span = block->span;
  const ptrdiff_t parts = (span + block->tile - 1) / block->tile, tiles = (total + span - 1) / span * parts;
#pragma omp parallel num_threads(block->threads)
  {
    const Scratch scratch = scratch_of(block, all, half);
#pragma omp for schedule(dynamic)
    for (ptrdiff_t tile = 0; tile < tiles; tile++) {
      const ptrdiff_t begin = tile / parts * span + tile % parts * block->tile;
      const ptrdiff_t rows = smaller(block->tile, (tile / parts + 1) * span - begin);
      if (step != AFTER) {
        depthwise(block, x, begin, begin + rows, scratch, half, narrow);
        expand(block, rows, scratch, half);
      }
      if (step == BEFORE) keep(block, scratch, begin, rows, hidden, squares + tile * block->hidden, half);
      if (step == AFTER) scale(block, scratch, begin, rows, hidden, factors + tile / parts * block->hidden, half);
      if (step != BEFORE) project(block, x, out, begin, rows, scratch, half, narrow);
    }
  }
}

// Norm and convolution of kernel size and stride 2: a product of the four normalised positions of each patch.
INLINE void downsampled(const Downsample *layer, const float *x, float *out, float *all, const int half, const int narrow) {
  const ptrdiff_t height = layer->height / 2, width = layer->width / 2, channels = layer->channels;
  const ptrdiff_t total = layer->images * height * width, words = 4 * channels / (half ? 2 : 1);
#pragma omp parallel num_threads(layer->threads)
  {
    float *normal = all + omp_get_thread_num() * layer->scratch;
#pragma omp for schedule(dynamic)
    for (ptrdiff_t begin = 0; begin < total; begin += layer->tile) {
      const ptrdiff_t end = smaller(begin + layer->tile, total);
      for (ptrdiff_t i = 0; i < 4 * (end - begin); i++) {
        const ptrdiff_t at = begin + i / 4, line = 2 * (at / width % height) + i % 4 / 2, column = 2 * (at % width) + i % 2;
        const ptrdiff_t from = ((at / width / height * layer->height + line) * layer->width + column) * channels;
        normalise(x, from, channels, layer->scale, layer->shift, layer->eps, normal, i * channels, half, narrow);
      }
      multiply(ALONE[half], normal, words, layer->weight, layer->bias, NULL, out, begin * layer->outputs, layer->outputs,
               end - begin);
    }
  }
}

#define EXPORT(name, half, narrow) \
  void downsampled_##name(const Downsample *layer, const float *x, float *out, float *scratch) { \
    downsampled(layer, x, out, scratch, half, narrow); \
  } \
  void whole_##name(const Block *block, const float *x, float *out, float *scratch) { \
    run(block, x, out, NULL, NULL, NULL, scratch, WHOLE, half, narrow); \
  } \
  void before_grn_##name(const Block *block, const float *x, float *hidden, float *squares, float *scratch) { \
    run(block, x, NULL, hidden, squares, NULL, scratch, BEFORE, half, narrow); \
  } \
  void after_grn_##name(const Block *block, const float *x, float *hidden, const float *factors, float *out, \
                        float *scratch) { \
    run(block, x, out, hidden, NULL, factors, scratch, AFTER, half, narrow); \
  }
// The names end with the precision of the products and that of the maps.
EXPORT(float32_float32, 0, 0)
#ifdef __AVX512BF16__
EXPORT(bfloat16_float32, 1, 0)
EXPORT(bfloat16_bfloat16, 1, 1)
#endif
