/* out[r] = sum over the matrices that row r meets of w * (W x[r]): the kernel under asterism.core.grouped, which validates everything.
 *
 * Few rows with many matrices: each matrix is read once, straight on, by all rows that meet it. A tile is four of its rows (outputs) with
 * up to MOST rows of x, sixteen-odd inner products that stay in registers. How many rows share a tile changes no row's numbers: each
 * inner product runs over the inputs in the same order, and each row adds up its matrices in the order given. Threads share the outputs.
 */
#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>

#include "_kernel.h"

#if (defined(__GNUC__) || defined(__clang__)) && defined(__x86_64__)
#define X86 1
#include <immintrin.h>
#define AVX2 __attribute__((target("avx2,fma")))
#define AVX512 __attribute__((target("avx512f")))
#define INLINE static inline __attribute__((always_inline))
#else
#define X86 0
#endif

typedef struct {
    float *out;             /* [n, outputs] */
    const float *x;         /* [n, inputs] */
    const void **matrices;  /* k of [outputs, inputs] */
    const int64_t *counts;  /* [k]: how many rows meet each; NULL: all n */
    const int64_t *rows;    /* [sum of counts]: which, one matrix's after another's; NULL: 0, 1, ... */
    const float *weights;   /* [sum of counts], or [sum of counts, outputs]; NULL: 1 */
    int by_output;
    int64_t k, n, inputs, outputs;
} Job;

/* All matrices' outputs from `first` to `last`. */
typedef void Kernel(const Job *job, int64_t first, int64_t last);

#if X86
enum { OUTPUTS = 4 };

AVX2 INLINE __m128 sums_avx2(const __m256 *v) { /* of each of four registers */
    const __m256 ab = _mm256_unpacklo_ps(v[0], v[1]) + _mm256_unpackhi_ps(v[0], v[1]);
    const __m256 cd = _mm256_unpacklo_ps(v[2], v[3]) + _mm256_unpackhi_ps(v[2], v[3]);
    const __m256d low = _mm256_unpacklo_pd(_mm256_castps_pd(ab), _mm256_castps_pd(cd));
    const __m256d high = _mm256_unpackhi_pd(_mm256_castps_pd(ab), _mm256_castps_pd(cd));
    const __m256 all = _mm256_castpd_ps(low) + _mm256_castpd_ps(high);
    return _mm256_castps256_ps128(all) + _mm256_extractf128_ps(all, 1);
}
AVX512 INLINE __m128 sums_avx512(const __m512 *v) {
    const __m512 ab = _mm512_unpacklo_ps(v[0], v[1]) + _mm512_unpackhi_ps(v[0], v[1]);
    const __m512 cd = _mm512_unpacklo_ps(v[2], v[3]) + _mm512_unpackhi_ps(v[2], v[3]);
    const __m512d low = _mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
    const __m512d high = _mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
    const __m512 all = _mm512_castpd_ps(low) + _mm512_castpd_ps(high);
    const __m128 left = _mm512_castps512_ps128(all) + _mm512_extractf32x4_ps(all, 1);
    return left + (_mm512_extractf32x4_ps(all, 2) + _mm512_extractf32x4_ps(all, 3));
}

/* `_tile`: the products of four outputs, whose matrix rows begin at `w`, with so many rows of x: sums[r]. While one tile is worked on the
 * next one's matrix rows are fetched (`ahead`). `_group`: a tile, weighed and added to the rows' outputs. */
#define GROUPED(NAME, TARGET, V, WIDTH, MOST, M, CASES)                                                                             \
    TARGET INLINE void NAME##_tile(const Job *job, const float *w, const float *const *x, __m128 *sums, const int rows, int ahead) { \
        const int64_t inputs = job->inputs;                                                                                         \
        V sum[MOST * OUTPUTS];                                                                                                      \
        for (int i = 0; i < rows * OUTPUTS; i++) sum[i] = M##_setzero_ps();                                                         \
        int64_t i = 0;                                                                                                              \
        for (; i + WIDTH <= inputs; i += WIDTH) {                                                                                   \
            V row[OUTPUTS];                                                                                                         \
            for (int o = 0; o < OUTPUTS; o++) row[o] = M##_loadu_ps(w + o * inputs + i);                                            \
            if (ahead)                                                                                                              \
                for (int o = 0; o < OUTPUTS; o++) _mm_prefetch((const char *)(w + (OUTPUTS + o) * inputs + i), _MM_HINT_T0);        \
            for (int r = 0; r < rows; r++) {                                                                                        \
                const V own = M##_loadu_ps(x[r] + i);                                                                               \
                for (int o = 0; o < OUTPUTS; o++) sum[r * OUTPUTS + o] = M##_fmadd_ps(row[o], own, sum[r * OUTPUTS + o]);           \
            }                                                                                                                       \
        }                                                                                                                           \
        for (int r = 0; r < rows; r++) {                                                                                            \
            sums[r] = sums_##NAME(sum + r * OUTPUTS);                                                                               \
            for (int64_t j = i; j < inputs; j++)                                                                                    \
                sums[r] += _mm_setr_ps(w[j], w[inputs + j], w[2 * inputs + j], w[3 * inputs + j]) * _mm_set1_ps(x[r][j]);           \
        }                                                                                                                           \
    }                                                                                                                               \
    TARGET INLINE void NAME##_group(const Job *job, const float *w, int64_t output, int64_t meeting, const int rows, int ahead) {   \
        __m128 sums[MOST];                                                                                                          \
        const float *x[MOST];                                                                                                       \
        int64_t place[MOST];                                                                                                        \
        for (int r = 0; r < rows; r++) {                                                                                            \
            place[r] = job->rows ? job->rows[meeting + r] : meeting + r;                                                            \
            x[r] = job->x + place[r] * job->inputs;                                                                                 \
        }                                                                                                                           \
        NAME##_tile(job, w, x, sums, rows, ahead);                                                                                  \
        for (int r = 0; r < rows; r++) {                                                                                            \
            float *to = job->out + place[r] * job->outputs + output;                                                                \
            const float *weight = job->weights + (meeting + r) * (job->by_output ? job->outputs : 1);                               \
            if (!job->weights) _mm_storeu_ps(to, _mm_loadu_ps(to) + sums[r]);                                                       \
            else if (job->by_output) _mm_storeu_ps(to, _mm_loadu_ps(to) + _mm_loadu_ps(weight + output) * sums[r]);                 \
            else _mm_storeu_ps(to, _mm_loadu_ps(to) + _mm_set1_ps(*weight) * sums[r]);                                              \
        }                                                                                                                           \
    }                                                                                                                               \
    TARGET static void NAME(const Job *job, int64_t first, int64_t last) {                                                          \
        int64_t start = 0; /* meetings before this matrix's */                                                                      \
        for (int64_t each = 0; each < job->k; each++) {                                                                             \
            const int64_t count = job->counts ? job->counts[each] : job->n, groups = (count + MOST - 1) / MOST;                     \
            for (int64_t o = first; o < last; o += OUTPUTS) {                                                                       \
                const float *w = (const float *)job->matrices[each] + o * job->inputs;                                                             \
                for (int64_t g = 0; g < groups; g++) {                                                                              \
                    const int64_t from = g * count / groups;                                                                        \
                    switch ((g + 1) * count / groups - from) { CASES(NAME) }                                                        \
                }                                                                                                                   \
            }                                                                                                                       \
            if (!job->counts) continue;                                                                                             \
            start += count;                                                                                                         \
        }                                                                                                                           \
    }
#define CASE(NAME, ROWS)                                                                                                            \
    case ROWS:                                                                                                                      \
        NAME##_group(job, w, o, start + from, ROWS, g == 0);                                                                        \
        break;
#define TWO(NAME) CASE(NAME, 1) CASE(NAME, 2)
#define SIX(NAME) TWO(NAME) CASE(NAME, 3) CASE(NAME, 4) CASE(NAME, 5) CASE(NAME, 6)
GROUPED(avx2, AVX2, __m256, 8, 2, _mm256, TWO)
GROUPED(avx512, AVX512, __m512, 16, 6, _mm512, SIX)

static Kernel *const KERNELS[] = {avx2, avx512};
static const char *const LEVELS[] = {"avx2", "avx512"};
static int count_levels(void) {
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 0;
    return __builtin_cpu_supports("avx512f") ? 2 : 1;
}
#else
enum { OUTPUTS = 1 };
static Kernel *const KERNELS[] = {0};
static const char *const LEVELS[] = {0};
static int count_levels(void) { return 0; }
#endif

static void run(const Job *job, Kernel *kernel, int threads) {
    const int64_t tiles = job->outputs / OUTPUTS;
    for (int64_t i = 0; i < job->n * job->outputs; i++) job->out[i] = 0;
    if (threads > tiles) threads = (int)tiles;
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) schedule(static)
#endif
    for (int part = 0; part < threads; part++) kernel(job, part * tiles / threads * OUTPUTS, (part + 1) * tiles / threads * OUTPUTS);
}

static PyObject *product(PyObject *self, PyObject *args) {
    (void)self;
    int level, by_output, threads;
    PyObject *out, *x, *matrices, *counts, *rows, *weights;
    long long n, inputs, outputs;
    if (!PyArg_ParseTuple(args, "iOOOOOOpLLLi", &level, &out, &x, &matrices, &counts, &rows, &weights, &by_output, &n, &inputs, &outputs,
                          &threads))
        return NULL;
    if (level < 0 || level >= count_levels() || n < 1 || inputs < 1 || outputs < 1 || outputs % OUTPUTS || threads < 1)
        return PyErr_Format(PyExc_ValueError, "level, rows, inputs, outputs or threads out of range");
    const Py_ssize_t k = PyTuple_Size(matrices);
    if (k < 1) return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_ValueError, "at least one matrix");
    const void **pointers = PyMem_Malloc((size_t)k * sizeof *pointers);
    if (!pointers) return PyErr_NoMemory();
    Job job = {PyLong_AsVoidPtr(out),     PyLong_AsVoidPtr(x), pointers,           PyLong_AsVoidPtr(counts), PyLong_AsVoidPtr(rows),
               PyLong_AsVoidPtr(weights), by_output,           k,                  n,                        inputs,
               outputs};
    if (!PyErr_Occurred() && addresses(matrices, k, pointers)) {
        Py_BEGIN_ALLOW_THREADS
        run(&job, KERNELS[level], threads);
        Py_END_ALLOW_THREADS
    }
    PyMem_Free(pointers);
    if (PyErr_Occurred()) return NULL;
    Py_RETURN_NONE;
}

static PyObject *levels(PyObject *self, PyObject *args) {
    (void)self, (void)args;
    return tuple_of(LEVELS, count_levels());
}

static PyMethodDef METHODS[] = {
    {"product", product, METH_VARARGS,
     "product(level, out, x, matrices, counts, rows, weights, by_output, n, inputs, outputs, threads)\n\n"
     "out [n, outputs] <- each row of x [n, inputs] with its matrices [outputs, inputs], weighed and added; all float32, given as\n"
     "addresses of contiguous memory that the caller has checked. counts, rows, weights may be 0. outputs: a multiple of 4.\n"
     "level: index into levels(). Releases the GIL."},
    {"levels", levels, METH_NOARGS, "The levels this processor runs, slowest first; none where there is no kernel for it."},
    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "_grouped", "Few rows with many matrices.", 0, METHODS, NULL, NULL, NULL, NULL};
PyMODINIT_FUNC PyInit__grouped(void) { return PyModuleDef_Init(&MODULE); }
