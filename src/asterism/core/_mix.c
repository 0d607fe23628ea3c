/* out <- sum_i w_i * theta_i in one pass over memory: the kernel under asterism.core.mixing, which validates everything first.
 *
 * Every element is w_0 x_0, then += w_i x_i for i = 1, 2, ... in float32 (float64 for float64), products and sums rounded
 * separately. Built with -ffp-contract=off, so the plain C and each vector level give the same bits, however the work is cut.
 * The result is written past the cache (streaming stores) where asked: it saves reading `out` before overwriting it.
 */
#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#include "_kernel.h"

#if (defined(__GNUC__) || defined(__clang__)) && defined(__x86_64__)
#define X86 1
#include <immintrin.h>
#define AVX2 __attribute__((target("avx2")))
#define AVX512 __attribute__((target("avx512f,avx512bw")))
#define INLINE static inline __attribute__((always_inline))
#else
#define X86 0
#endif

typedef struct {
    char *out;
    const void **in;      /* k tensors like out */
    const void **weights; /* k vectors in the accumulator's type: one weight a column, or `period` of them, one a row */
    Py_ssize_t k;
    int64_t cols, period;
    int by_column, stream;
} Job;

/* Mix `rows` stretches of `n` elements, the first at flat index `at`, each all in one row; `w` is the index of their first (by
 * column) or only (by row) weight. More than one row: whole rows, by column. */
typedef void Kernel(const Job *job, int64_t at, int64_t w, int64_t rows, int64_t n);

/* bfloat16 is the upper half of float32; rounded to nearest even, NaN stays NaN. */
static inline float widen(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
static inline uint16_t narrow(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    bits += 0x7FFFu + ((bits >> 16) & 1u);
    return value != value ? 0x7FC0u : (uint16_t)(bits >> 16);
}
#define SAME(x) (x)

/* Plain C: accumulators in a block on the stack, loops that compilers vectorise. Heads and tails of the vector kernels too. */
enum { BLOCK = 512 };
#define PLAIN(NAME, T, A, WIDEN, NARROW)                                                                                            \
    static void NAME(const Job *job, int64_t at, int64_t w, int64_t rows, int64_t n) {                                              \
        A sum[BLOCK];                                                                                                               \
        for (; rows > 0; rows--, at += n)                                                                                           \
            for (int64_t i = 0; i < n; i += BLOCK) {                                                                                \
                const int64_t m = n - i < BLOCK ? n - i : BLOCK;                                                                    \
                T *out = (T *)job->out + at + i;                                                                                    \
                for (Py_ssize_t k = 0; k < job->k; k++) {                                                                           \
                    const T *x = (const T *)job->in[k] + at + i;                                                                    \
                    const A *c = (const A *)job->weights[k] + w + (job->by_column ? i : 0);                                         \
                    const A one = *c;                                                                                               \
                    if (k == 0 && job->by_column)                                                                                   \
                        for (int64_t j = 0; j < m; j++) sum[j] = c[j] * WIDEN(x[j]);                                                \
                    else if (k == 0)                                                                                                \
                        for (int64_t j = 0; j < m; j++) sum[j] = one * WIDEN(x[j]);                                                 \
                    else if (job->by_column)                                                                                        \
                        for (int64_t j = 0; j < m; j++) sum[j] += c[j] * WIDEN(x[j]);                                               \
                    else                                                                                                            \
                        for (int64_t j = 0; j < m; j++) sum[j] += one * WIDEN(x[j]);                                                \
                }                                                                                                                   \
                for (int64_t j = 0; j < m; j++) out[j] = NARROW(sum[j]);                                                            \
            }                                                                                                                       \
    }
PLAIN(plain_f32, float, float, SAME, SAME)
PLAIN(plain_f64, double, double, SAME, SAME)
PLAIN(plain_bf16, uint16_t, float, widen, narrow)

#if X86
/* Vector kernels: GROUP elements, one aligned register of `out`, are held as HELD registers of sums; `products_` gives c x of one
 * tensor's group, `write_` stores a group's sums. A step does four groups, at a row's end one; weights by column that would fill
 * the first cache are shared by several rows. Plain C does what lies before the first aligned address and after the last group. */
#define VECTOR(NAME, PLAIN_NAME, TARGET, T, A, V, HELD, GROUP)                                                                      \
    TARGET INLINE void NAME##_step(const Job *job, int64_t at, int64_t w, const int rows, const int groups, const int by_column,    \
                                   const int stream) {                                                                              \
        V sum[4 * HELD], product[HELD];                                                                                             \
        for (int g = 0; g < groups; g++)                                                                                            \
            for (int r = 0; r < rows; r++)                                                                                          \
                products_##NAME(sum + (g * rows + r) * HELD, (const T *)job->in[0] + at + r * job->cols + g * GROUP,                \
                                (const A *)job->weights[0] + w + (by_column ? g * GROUP : 0), by_column);                           \
        for (Py_ssize_t k = 1; k < job->k; k++)                                                                                     \
            for (int g = 0; g < groups; g++)                                                                                        \
                for (int r = 0; r < rows; r++) {                                                                                    \
                    products_##NAME(product, (const T *)job->in[k] + at + r * job->cols + g * GROUP,                                \
                                    (const A *)job->weights[k] + w + (by_column ? g * GROUP : 0), by_column);                       \
                    for (int h = 0; h < HELD; h++) sum[(g * rows + r) * HELD + h] += product[h];                                    \
                }                                                                                                                   \
        for (int r = 0; r < rows; r++)                                                                                              \
            for (int g = 0; g < groups; g++)                                                                                        \
                write_##NAME((T *)job->out + at + r * job->cols + g * GROUP, sum + (g * rows + r) * HELD, stream);                  \
    }                                                                                                                               \
    TARGET INLINE void NAME##_row(const Job *job, int64_t at, int64_t w, int64_t n, const int by_column, const int stream) {        \
        enum { ALIGN = GROUP * sizeof(T) };                                                                                         \
        int64_t i = stream ? (int64_t)((ALIGN - (uintptr_t)((T *)job->out + at) % ALIGN) % ALIGN / sizeof(T)) : 0;                  \
        if (i > n) i = n;                                                                                                           \
        if (i > 0) PLAIN_NAME(job, at, w, 1, i);                                                                                    \
        for (; i + 4 * GROUP <= n; i += 4 * GROUP) NAME##_step(job, at + i, by_column ? w + i : w, 1, 4, by_column, stream);        \
        for (; i + GROUP <= n; i += GROUP) NAME##_step(job, at + i, by_column ? w + i : w, 1, 1, by_column, stream);                \
        if (i < n) PLAIN_NAME(job, at + i, by_column ? w + i : w, 1, n - i);                                                        \
    }                                                                                                                               \
    TARGET static void NAME(const Job *job, int64_t at, int64_t w, int64_t rows, int64_t n) {                                       \
        enum { LINE = 64 / (GROUP * sizeof(T)), TOGETHER = 4 / LINE };                                                              \
        int64_t r = 0;                                                                                                              \
        if (job->by_column && job->stream && n % (LINE * GROUP) == 0 && (uintptr_t)((T *)job->out + at) % 64 == 0)                  \
            for (; r + TOGETHER <= rows; r += TOGETHER)                                                                             \
                for (int64_t i = 0; i < n; i += LINE * GROUP) NAME##_step(job, at + r * n + i, w + i, TOGETHER, LINE, 1, 1);        \
        for (at += r * n; r < rows; r++, at += n)                                                                                   \
            if (job->by_column && job->stream) NAME##_row(job, at, w, n, 1, 1);                                                     \
            else if (job->by_column) NAME##_row(job, at, w, n, 1, 0);                                                               \
            else if (job->stream) NAME##_row(job, at, w, n, 0, 1);                                                                  \
            else NAME##_row(job, at, w, n, 0, 0);                                                                                   \
    }

#define FLOATS(NAME, PLAIN_NAME, TARGET, T, V, WIDTH, M, S)                                                                         \
    TARGET INLINE void products_##NAME(V *product, const T *x, const T *c, const int by_column) {                                   \
        *product = (by_column ? M##_loadu_##S(c) : M##_set1_##S(*c)) * M##_loadu_##S(x);                                            \
    }                                                                                                                               \
    TARGET INLINE void write_##NAME(T *out, const V *sum, const int stream) {                                                       \
        if (stream) M##_stream_##S(out, *sum);                                                                                      \
        else M##_storeu_##S(out, *sum);                                                                                             \
    }                                                                                                                               \
    VECTOR(NAME, PLAIN_NAME, TARGET, T, T, V, 1, WIDTH)
FLOATS(f32_avx512, plain_f32, AVX512, float, __m512, 16, _mm512, ps)
FLOATS(f64_avx512, plain_f64, AVX512, double, __m512d, 8, _mm512, pd)
FLOATS(f32_avx2, plain_f32, AVX2, float, __m256, 8, _mm256, ps)
FLOATS(f64_avx2, plain_f64, AVX2, double, __m256d, 4, _mm256, pd)

/* bfloat16: interleaving with zeros makes two registers of floats, the lower and the upper 64 bits of every 128-bit lane; packing
 * undoes it. Weights by column are brought into that order. */
AVX512 INLINE void products_bf16_avx512(__m512 *product, const uint16_t *x, const float *c, const int by_column) {
    const __m512i halves = _mm512_loadu_si512(x), zero = _mm512_setzero_si512();
    __m512 lower = _mm512_set1_ps(*c), upper = lower;
    if (by_column) {
        const __m512 first = _mm512_loadu_ps(c), second = _mm512_loadu_ps(c + 16);
        lower = _mm512_shuffle_f32x4(first, second, _MM_SHUFFLE(2, 0, 2, 0));
        upper = _mm512_shuffle_f32x4(first, second, _MM_SHUFFLE(3, 1, 3, 1));
    }
    product[0] = lower * _mm512_castsi512_ps(_mm512_unpacklo_epi16(zero, halves));
    product[1] = upper * _mm512_castsi512_ps(_mm512_unpackhi_epi16(zero, halves));
}
AVX512 INLINE __m512i rounded_avx512(__m512 value) { /* `narrow`; see any_nan */
    const __m512i bits = _mm512_castps_si512(value), last = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    return _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF)), last), 16);
}
AVX512 INLINE void write_bf16_avx512(uint16_t *out, const __m512 *sum, const int stream) {
    const __m512i halves = _mm512_packus_epi32(rounded_avx512(sum[0]), rounded_avx512(sum[1]));
    if (stream) _mm512_stream_si512((__m512i *)out, halves);
    else _mm512_storeu_si512(out, halves);
}
VECTOR(bf16_avx512, plain_bf16, AVX512, uint16_t, float, __m512, 2, 32)

AVX2 INLINE void products_bf16_avx2(__m256 *product, const uint16_t *x, const float *c, const int by_column) {
    const __m256i halves = _mm256_loadu_si256((const __m256i *)x), zero = _mm256_setzero_si256();
    __m256 lower = _mm256_set1_ps(*c), upper = lower;
    if (by_column) {
        const __m256 first = _mm256_loadu_ps(c), second = _mm256_loadu_ps(c + 8);
        lower = _mm256_permute2f128_ps(first, second, 0x20);
        upper = _mm256_permute2f128_ps(first, second, 0x31);
    }
    product[0] = lower * _mm256_castsi256_ps(_mm256_unpacklo_epi16(zero, halves));
    product[1] = upper * _mm256_castsi256_ps(_mm256_unpackhi_epi16(zero, halves));
}
AVX2 INLINE __m256i rounded_avx2(__m256 value) {
    const __m256i bits = _mm256_castps_si256(value), last = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    return _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF)), last), 16);
}
AVX2 INLINE void write_bf16_avx2(uint16_t *out, const __m256 *sum, const int stream) {
    const __m256i halves = _mm256_packus_epi32(rounded_avx2(sum[0]), rounded_avx2(sum[1]));
    if (stream) _mm256_stream_si256((__m256i *)out, halves);
    else _mm256_storeu_si256((__m256i *)out, halves);
}
VECTOR(bf16_avx2, plain_bf16, AVX2, uint16_t, float, __m256, 2, 16)

static Kernel *const KERNELS[3][3] = { /* [level][dtype] */
    {plain_f32, plain_f64, plain_bf16}, {f32_avx2, f64_avx2, bf16_avx2}, {f32_avx512, f64_avx512, bf16_avx512}};
static int highest_level(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") ? 2 : __builtin_cpu_supports("avx2") ? 1 : 0;
}
#else
static Kernel *const KERNELS[1][3] = {{plain_f32, plain_f64, plain_bf16}};
static int highest_level(void) { return 0; }
#endif
static const char *const LEVELS[] = {"plain", "avx2", "avx512"};
static const int64_t ITEM_SIZE[] = {4, 8, 2}; /* dtype 0 float32, 1 float64, 2 bfloat16 */

enum { WIDE = 24 << 10 }; /* bytes of weights by column that crowd the first cache */

/* Flat elements [begin, end), row by row; whole rows together where that spares reading the weights. */
static void run(const Job *job, Kernel *kernel, int weight_size, int64_t begin, int64_t end) {
    const int wide = job->by_column && job->k * job->cols * weight_size > WIDE;
    while (begin < end) {
        const int64_t row = begin / job->cols, col = begin % job->cols, left = end - begin;
        const int64_t n = job->cols - col < left ? job->cols - col : left;
        const int64_t rows = wide && n == job->cols ? left / n : 1;
        kernel(job, begin, job->by_column ? col : row % job->period, rows, n);
        begin += rows * n;
    }
#if X86
    if (job->stream) _mm_sfence();
#endif
}

/* All of it, in chunks that whichever thread is free takes next. torch's OpenMP runtime is the one already loaded, so these are its own
 * threads: none is started, and none of them spins beside ours. */
static void run_shared(const Job *job, Kernel *kernel, int weight_size, int64_t count, int64_t chunk, int threads) {
#ifdef _OPENMP
    if (threads > 1 && count > chunk) {
        const int64_t chunks = (count + chunk - 1) / chunk;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
        for (int64_t c = 0; c < chunks; c++)
            run(job, kernel, weight_size, c * chunk, (c + 1) * chunk < count ? (c + 1) * chunk : count);
        return;
    }
#endif
    (void)chunk, (void)threads;
    run(job, kernel, weight_size, 0, count);
}

/* The vector kernels' rounding keeps a NaN only if its lower half is clear, as it is unless a weight brought another. */
static int any_nan(const Job *job) {
    int found = 0;
    for (Py_ssize_t k = 0; k < job->k; k++)
        for (int64_t i = 0; i < (job->by_column ? job->cols : job->period); i++)
            found |= ((const float *)job->weights[k])[i] != ((const float *)job->weights[k])[i];
    return found;
}

static PyObject *mix(PyObject *self, PyObject *args) {
    (void)self;
    int level, dtype, by_column, stream, threads;
    PyObject *out, *in, *weights;
    long long cols, period, count, chunk;
    if (!PyArg_ParseTuple(args, "iiOOOLLppLLi", &level, &dtype, &out, &in, &weights, &cols, &period, &by_column, &stream, &count, &chunk,
                          &threads))
        return NULL;
    if (level < 0 || level > highest_level() || dtype < 0 || dtype > 2 || cols < 1 || period < 1 || chunk < 1)
        return PyErr_Format(PyExc_ValueError, "level, dtype, cols, period or chunk out of range");
    const Py_ssize_t k = PyTuple_Size(in);
    if (k < 1) return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_ValueError, "at least one tensor");
    const void **pointers = PyMem_Malloc(2 * (size_t)k * sizeof *pointers);
    if (!pointers) return PyErr_NoMemory();
    Job job = {PyLong_AsVoidPtr(out), pointers, pointers + k, k, cols, period, by_column, stream};
    if (!PyErr_Occurred() && addresses(in, k, pointers) && addresses(weights, k, pointers + k)) {
        job.stream = stream && (uintptr_t)job.out % (uintptr_t)ITEM_SIZE[dtype] == 0;
        Py_BEGIN_ALLOW_THREADS
        if (dtype == 2 && any_nan(&job)) level = 0;
        run_shared(&job, KERNELS[level][dtype], dtype == 1 ? 8 : 4, count, chunk, threads);
        Py_END_ALLOW_THREADS
    }
    PyMem_Free(pointers);
    if (PyErr_Occurred()) return NULL;
    Py_RETURN_NONE;
}

static PyObject *levels(PyObject *self, PyObject *args) {
    (void)self, (void)args;
    return tuple_of(LEVELS, highest_level() + 1);
}

static PyMethodDef METHODS[] = {
    {"mix", mix, METH_VARARGS,
     "mix(level, dtype, out, inputs, weights, cols, period, by_column, stream, count, chunk, threads)\n\n"
     "The first `count` elements of out <- sum of weights * inputs, all given as addresses of contiguous memory that the caller has\n"
     "checked. level: index into levels(); dtype: 0 float32, 1 float64, 2 bfloat16. `threads` take `chunk` elements at a time.\n"
     "Releases the GIL."},
    {"levels", levels, METH_NOARGS, "The levels this processor runs, slowest first."},
    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "_mix", "Weighted sums of tensors in one pass.", 0, METHODS, NULL, NULL, NULL, NULL};
PyMODINIT_FUNC PyInit__mix(void) { return PyModuleDef_Init(&MODULE); }
