/* Gram matrices and sparse sums of deltas, read in place: the kernel under asterism.core.native, which validates everything first.
 *
 * Tensors are float32, float64, bfloat16 or float16; a tile of 512 elements is widened to the stack, where plain loops work on it,
 * which compilers vectorise: the same C is compiled for each level. Sums of float64 run in the order of asterism.core.sums; built
 * with -ffp-contract=off, so neither level nor threads change a bit, and the torch path has the same ones.
 */
#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "_kernel.h"

#if defined(__GNUC__) || defined(__clang__)
#define INLINE static inline __attribute__((always_inline))
#else
#define INLINE static inline
#endif
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "bits are packed by little-endian words"
#endif

enum { CHUNK = 1 << 16, TILE = 512, LANES = 32, ROWS = TILE / LANES, MOST = 16, PAIRS = MOST * (MOST + 1) / 2 };
enum { F32, F64, BF16, F16 };
static const int64_t ITEM_SIZE[] = {4, 8, 2, 2};
#define MAGNITUDE 0x7FFFFFFFu
#define INFINITE 0x7F800000u

typedef struct {
    const char *at;
    int dtype;
} Source;

typedef struct {
    Source base, in[MOST]; /* base.at may be NULL for gram */
    int k;
    int64_t n, cols, pieces;      /* elements; of a row; chunks in a row */
    int wide;                     /* gram: differences in float64 */
    double *sums;                 /* gram: [rows * pieces, pairs]; weigh: [chunks, 2] */
    uint32_t *counts;             /* count: [threads, shares, bins] */
    int shares, shift, bins;      /* bins: a power of two */
    int64_t prefix;               /* what lies above the bins, or -1 for all */
    uint32_t limit[2];            /* ties, cut: magnitudes */
    int64_t *quota;               /* [chunks, 2]: entries equal to each limit; or how many of them still count as above it */
    uint64_t *marks[MOST];        /* a bit an element, 64 a word; NULL: all are kept */
    uint64_t key;                 /* of draws */
    uint32_t below;               /* draws less than this are kept */
    const int32_t *chances;       /* [cols]: the same by rank */
    int64_t rows, group;          /* ranked: rows, and how many of them a unit takes */
    char *out;
    int out_dtype, consensus, divide;
    float coefficient[MOST], weight[MOST], scale;
    int bad, no_memory; /* found on the way */
} Job;

typedef void Unit(Job *job, int64_t unit, int thread);

static void found(int *what) { /* by any thread */
#ifdef _OPENMP
#pragma omp atomic write
#endif
    *what = 1;
}

/* ---- numbers ---- */

INLINE uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}
INLINE float from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
/* All ones or all zeros: choosing by bits leaves compilers no branch to make. */
INLINE uint32_t mask(int condition) { return 0u - (uint32_t)(condition != 0); }
INLINE uint32_t either(uint32_t mask, uint32_t yes, uint32_t no) { return (yes & mask) | (no & ~mask); }
INLINE float where(uint32_t mask, float value) { return from_bits(bits_of(value) & mask); }

INLINE float widen(uint16_t half) { return from_bits((uint32_t)half << 16); }
INLINE uint16_t narrow(float value) { /* to nearest even */
    const uint32_t bits = bits_of(value), rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
    return (uint16_t)(value != value ? 0x7FC0u : rounded);
}
INLINE float from_half(uint16_t half) { /* exact: exponents move by 112, subnormals by subtraction */
    const uint32_t sign = (uint32_t)(half & 0x8000u) << 16, body = (uint32_t)(half & 0x7FFFu) << 13, exponent = body & 0x0F800000u;
    const uint32_t small = bits_of(from_bits(body + (113u << 23)) - from_bits(113u << 23));
    const uint32_t normal = body + (112u << 23) + (mask(exponent == 0x0F800000u) & 112u << 23);
    return from_bits(either(mask(exponent == 0), small, normal) | sign);
}
INLINE uint16_t to_half(float value) { /* to nearest even */
    const uint32_t bits = bits_of(value), sign = bits >> 16 & 0x8000u, body = bits & MAGNITUDE;
    const uint32_t small = bits_of(from_bits(body) + from_bits(126u << 23)) - (126u << 23);
    const uint32_t normal = (body - (112u << 23) + 0xFFFu + ((body >> 13) & 1u)) >> 13;
    const uint32_t large = 0x7C00u | (mask(body > INFINITE) & 0x0200u);
    return (uint16_t)(sign | either(mask(body >= (143u << 23)), large, either(mask(body < (113u << 23)), small, normal)));
}

/* ---- tiles: always TILE long on the stack, zeros past the tensor's end ---- */

INLINE const char *whole(const Source *from, int64_t at, int64_t m, char *spare) {
    const int64_t size = ITEM_SIZE[from->dtype];
    const char *place = from->at + at * size;
    if (m == TILE) return place;
    memset(spare, 0, (size_t)(TILE * size));
    memcpy(spare, place, (size_t)(m * size));
    return spare;
}
#define LOADED(T, EXPRESSION)                                                                                                       \
    {                                                                                                                               \
        const T *x = (const T *)place;                                                                                              \
        for (int j = 0; j < TILE; j++) to[j] = EXPRESSION;                                                                          \
    }                                                                                                                               \
    break
INLINE void load(float *to, const Source *from, int64_t at, int64_t m) {
    char spare[TILE * 8];
    const char *place = whole(from, at, m, spare);
    switch (from->dtype) {
    case F32: LOADED(float, x[j]);
    case BF16: LOADED(uint16_t, widen(x[j]));
    default: LOADED(uint16_t, from_half(x[j]));
    }
}
INLINE void load_delta(float *to, const Source *from, int64_t at, int64_t m, const float *base) {
    char spare[TILE * 8];
    const char *place = whole(from, at, m, spare);
    switch (from->dtype) {
    case F32: LOADED(float, x[j] - base[j]);
    case BF16: LOADED(uint16_t, widen(x[j]) - base[j]);
    default: LOADED(uint16_t, from_half(x[j]) - base[j]);
    }
}
INLINE void load_wide(double *to, const Source *from, int64_t at, int64_t m) {
    char spare[TILE * 8];
    const char *place = whole(from, at, m, spare);
    switch (from->dtype) {
    case F32: LOADED(float, x[j]);
    case F64: LOADED(double, x[j]);
    case BF16: LOADED(uint16_t, widen(x[j]));
    default: LOADED(uint16_t, from_half(x[j]));
    }
}
#define STORED(T, EXPRESSION)                                                                                                       \
    {                                                                                                                               \
        T *y = (T *)place;                                                                                                          \
        for (int j = 0; j < TILE; j++) y[j] = EXPRESSION;                                                                           \
    }                                                                                                                               \
    break
INLINE void store(char *out, int dtype, int64_t at, int64_t m, const float *x) {
    char spare[TILE * 8], *there = out + at * ITEM_SIZE[dtype], *place = m == TILE ? there : spare;
    switch (dtype) {
    case F32: STORED(float, x[j]);
    case F64: STORED(double, x[j]);
    case BF16: STORED(uint16_t, narrow(x[j]));
    default: STORED(uint16_t, to_half(x[j]));
    }
    if (m < TILE) memcpy(there, spare, (size_t)(m * ITEM_SIZE[dtype]));
}

/* Magnitudes of a tile of base and one tensor as whole numbers of their order; past the end larger than any. */
INLINE void magnitudes(uint32_t *to, const Job *job, int64_t at, int64_t m) {
    float base[TILE], delta[TILE];
    load(base, &job->base, at, m);
    load_delta(delta, &job->in[0], at, m, base);
    for (int j = 0; j < TILE; j++) to[j] = bits_of(delta[j]) & MAGNITUDE;
    for (int64_t j = m; j < TILE; j++) to[j] = 0xFFFFFFFFu;
}

/* 512 bytes of 0 or 1 <-> 512 bits */
INLINE void pack(uint64_t *bits, const uint8_t *flags) {
    uint8_t bytes[TILE / 8];
    for (int b = 0; b < TILE / 8; b++) {
        uint64_t eight;
        memcpy(&eight, flags + 8 * b, 8);
        bytes[b] = (uint8_t)((eight * 0x0102040810204080u) >> 56);
    }
    memcpy(bits, bytes, sizeof bytes);
}
INLINE void unpack(uint8_t *flags, const uint64_t *bits) { /* to 0 or not 0 */
    uint8_t bytes[TILE / 8];
    memcpy(bytes, bits, sizeof bytes);
    for (int b = 0; b < TILE / 8; b++) {
        const uint64_t eight = (uint64_t)bytes[b] * 0x0101010101010101u & 0x8040201008040201u;
        memcpy(flags + 8 * b, &eight, 8);
    }
}
/* Of a tile's eight words, the bits that lie before its end. */
INLINE uint64_t within(int word, int64_t m) {
    const int64_t left = m - 64 * word;
    return left >= 64 ? ~(uint64_t)0 : left <= 0 ? 0 : ((uint64_t)1 << left) - 1;
}

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
#define EACH_TILE(BEGIN, END) for (int64_t at = (BEGIN), m; at < (END) && (m = least(TILE, (END) - at)); at += TILE)

INLINE double folded(double *lanes) {
    for (int half = LANES / 2; half; half /= 2)
        for (int l = 0; l < half; l++) lanes[l] += lanes[l + half];
    return lanes[0];
}

/* ---- units of work: each a chunk or some rows ---- */

INLINE void gram_of(Job *job, int64_t unit, const int wide) {
    const int64_t begin = unit / job->pieces * job->cols + unit % job->pieces * CHUNK;
    const int64_t end = begin + least(CHUNK, job->cols - unit % job->pieces * CHUNK);
    const int pairs = job->k * (job->k + 1) / 2;
    double x[MOST][TILE], lanes[PAIRS][LANES];
    memset(lanes, 0, (size_t)pairs * sizeof *lanes);
    EACH_TILE(begin, end) {
        const int rows = (int)((m + LANES - 1) / LANES);
        if (wide) {
            double base[TILE];
            if (job->base.at) load_wide(base, &job->base, at, m);
            for (int i = 0; i < job->k; i++) {
                load_wide(x[i], &job->in[i], at, m);
                if (job->base.at)
                    for (int j = 0; j < TILE; j++) x[i][j] -= base[j];
            }
        } else {
            float base[TILE] = {0}, delta[TILE];
            if (job->base.at) load(base, &job->base, at, m);
            for (int i = 0; i < job->k; i++) {
                load_delta(delta, &job->in[i], at, m, base);
                for (int j = 0; j < TILE; j++) x[i][j] = delta[j];
            }
        }
        for (int i = 0, pair = 0; i < job->k; i++)
            for (int j = i; j < job->k; j++, pair++) {
                double sum[LANES] = {0};
                for (int r = 0; r < rows; r++)
                    for (int l = 0; l < LANES; l++) sum[l] += x[i][r * LANES + l] * x[j][r * LANES + l];
                for (int l = 0; l < LANES; l++) lanes[pair][l] += sum[l];
            }
    }
    for (int pair = 0; pair < pairs; pair++) job->sums[unit * pairs + pair] = folded(lanes[pair]);
}
INLINE void gram_body(Job *job, int64_t unit, int thread) {
    (void)thread;
    if (job->wide) gram_of(job, unit, 1);
    else gram_of(job, unit, 0);
}

/* Histogram of (magnitude >> shift) % bins among those with magnitude >> shift / bins == prefix. Equal neighbours fall into several
 * shares, so that no increment waits for the last. */
INLINE void count_body(Job *job, int64_t unit, int thread) {
    uint32_t *counts = job->counts + (int64_t)thread * job->shares * job->bins, size[TILE];
    const uint32_t last = (uint32_t)job->bins - 1, share = (uint32_t)job->bins;
    EACH_TILE(unit *CHUNK, least((unit + 1) * CHUNK, job->n)) {
        magnitudes(size, job, at, m);
        for (int j = 0; j < TILE; j++) size[j] >>= job->shift;
        if (job->prefix < 0) {
            int64_t j = 0;
            if (job->shares == 4)
                for (; j + 4 <= m; j += 4) {
                    counts[size[j] & last]++;
                    counts[share + (size[j + 1] & last)]++;
                    counts[2 * share + (size[j + 2] & last)]++;
                    counts[3 * share + (size[j + 3] & last)]++;
                }
            for (; j < m; j++) counts[size[j] & last]++;
            continue;
        }
        uint8_t flags[TILE];
        uint64_t words[TILE / 64];
        const uint32_t low = (uint32_t)job->prefix * share;
        for (int j = 0; j < TILE; j++) flags[j] = (size[j] ^ low) < share;
        pack(words, flags);
        for (int w = 0; w < TILE / 64; w++)
            for (uint64_t some = words[w] & within(w, m); some; some &= some - 1) {
                int bit = 0;
#if defined(__GNUC__) || defined(__clang__)
                bit = __builtin_ctzll(some);
#else
                while (!(some >> bit & 1)) bit++;
#endif
                counts[size[64 * w + bit] & last]++;
            }
    }
}

/* How many magnitudes of each chunk equal each limit. */
INLINE void ties_body(Job *job, int64_t unit, int thread) {
    (void)thread;
    uint32_t size[TILE], equal[2] = {0, 0};
    EACH_TILE(unit *CHUNK, least((unit + 1) * CHUNK, job->n)) {
        magnitudes(size, job, at, m);
        for (int j = 0; j < TILE; j++) equal[0] += size[j] == job->limit[0];
        for (int j = 0; j < TILE; j++) equal[1] += size[j] == job->limit[1];
    }
    for (int i = 0; i < 2; i++) job->quota[2 * unit + i] = equal[i];
}

/* The lowest `some` bits that are set. */
INLINE uint64_t first_bits(uint64_t set, int64_t some) {
    uint64_t chosen = 0;
    for (; set && some > 0; some--, set &= set - 1) chosen |= set & (~set + 1);
    return chosen;
}
INLINE int64_t set_bits(uint64_t x) {
    x -= x >> 1 & 0x5555555555555555u;
    x = (x & 0x3333333333333333u) + (x >> 2 & 0x3333333333333333u);
    x = (x + (x >> 4)) & 0x0F0F0F0F0F0F0F0Fu;
    return (int64_t)((x * 0x0101010101010101u) >> 56);
}
/* Above the limit, or equal to it while the quota lasts. */
INLINE void above(uint64_t *marks, const uint32_t *size, uint32_t limit, int64_t *quota) {
    uint8_t flags[TILE];
    uint64_t equal[TILE / 64];
    for (int j = 0; j < TILE; j++) flags[j] = size[j] > limit;
    pack(marks, flags);
    if (*quota <= 0) return;
    for (int j = 0; j < TILE; j++) flags[j] = size[j] == limit;
    pack(equal, flags);
    for (int w = 0; w < TILE / 64; w++) {
        const int64_t count = set_bits(equal[w]);
        marks[w] |= count <= *quota ? equal[w] : first_bits(equal[w], *quota);
        *quota = count <= *quota ? *quota - count : 0;
    }
}
/* Marks of the entries above limit 0 but not above limit 1. */
INLINE void cut_body(Job *job, int64_t unit, int thread) {
    (void)thread;
    uint32_t size[TILE];
    int64_t quota[2] = {job->quota[2 * unit], job->quota[2 * unit + 1]};
    EACH_TILE(unit *CHUNK, least((unit + 1) * CHUNK, job->n)) {
        uint64_t in[TILE / 64], out[TILE / 64];
        magnitudes(size, job, at, m);
        above(in, size, job->limit[0], quota);
        above(out, size, job->limit[1], quota + 1);
        for (int w = 0; w < TILE / 64; w++) job->marks[0][at / 64 + w] = in[w] & ~out[w] & within(w, m);
    }
}

INLINE uint32_t finalised(uint32_t word) {
    word = (word ^ word >> 16) * 0x7FEB352Du;
    word = (word ^ word >> 15) * 0x846CA68Bu;
    return word ^ word >> 16;
}
/* Draws of the places `at` and following: as asterism.core.draws. */
INLINE void draw(uint32_t *to, uint64_t key, int64_t at) {
    const uint32_t low = (uint32_t)at, high = (uint32_t)(at >> 32), first = (uint32_t)key, second = (uint32_t)(key >> 32);
    for (uint32_t j = 0; j < TILE; j++) {
        const uint32_t place = low + j, carried = high + (place < low);
        to[j] = finalised((finalised(place + first) ^ second) + carried * 0x9E3779B9u) >> 8;
    }
}
INLINE void random_body(Job *job, int64_t unit, int thread) {
    (void)thread;
    uint32_t drawn[TILE];
    uint8_t flags[TILE];
    uint64_t words[TILE / 64];
    EACH_TILE(unit *CHUNK, least((unit + 1) * CHUNK, job->n)) {
        draw(drawn, job->key, at);
        for (int j = 0; j < TILE; j++) flags[j] = drawn[j] < job->below;
        pack(words, flags);
        for (int w = 0; w < TILE / 64; w++) job->marks[0][at / 64 + w] = words[w] & within(w, m);
    }
}
INLINE void draws_body(Job *job, int64_t unit, int thread) {
    (void)thread;
    uint32_t drawn[TILE];
    EACH_TILE(unit *CHUNK, least((unit + 1) * CHUNK, job->n)) {
        draw(drawn, job->key, job->prefix + at);
        memcpy(job->out + 4 * at, drawn, (size_t)(4 * m));
    }
}

/* Marks by rank: an entry's draw must be less than the chance of its place in the row by magnitude, of equal ones the later first.
 *
 * Most need no exact rank: all of a bin have one between its first and last, and only draws between these chances ask for more. The
 * bins are equal steps of magnitude. False where more than VALUES magnitudes ask; then the row is sorted. */
enum { BINS = 2048, VALUES = 64 };
INLINE int by_bins(const int32_t *chances, int64_t n, uint8_t *flags, const uint32_t *size, const uint32_t *drawn, uint32_t *bin,
                   uint32_t *asking) {
    uint32_t top = 0, first = 0, begin[BINS] = {0}, sure[2 * BINS], bins = 64, asked = 0;
    for (int64_t j = 0; j < n; j++) top = size[j] > top ? size[j] : top;
    if (top >= INFINITE || top < 1u << 28) return 0; /* below 1e-29 the steps would overflow */
    while (bins < BINS && 2 * (int64_t)bins < n) bins *= 2;
    const float steps = (float)bins / from_bits(top);
    for (int64_t j = 0; j < n; j++) {
        const uint32_t place = (uint32_t)(int32_t)(from_bits(size[j]) * steps);
        bin[j] = place < bins ? place : bins - 1;
    }
    for (int64_t j = 0; j < n; j++) begin[bin[j]]++;
    for (uint32_t b = 0; b < bins; b++) {
        const uint32_t count = begin[b];
        if (!count) continue;
        const uint32_t one = (uint32_t)chances[first], other = (uint32_t)chances[first + count - 1];
        sure[2 * b] = one < other ? one : other, sure[2 * b + 1] = one < other ? other : one;
        first += count;
    }
    for (int64_t j = 0; j < n; j++) {
        const uint32_t *between = sure + 2 * bin[j];
        flags[j] = drawn[j] < between[0];
        asking[asked] = (uint32_t)j;
        asked += (drawn[j] >= between[0]) & (drawn[j] < between[1]);
    }
    for (int values = 0; asked; values++) { /* from the last: all that share its magnitude, at once */
        if (values == VALUES) return 0;
        const uint32_t mine = size[asking[asked - 1]];
        uint32_t rank = 0, left = 0;
        int64_t counted = n;
        for (int64_t j = 0; j < n; j++) rank += size[j] < mine;
        for (uint32_t i = asked; i-- > 0;) {
            const int64_t place = asking[i];
            if (size[place] != mine) continue;
            for (int64_t j = place + 1; j < counted; j++) rank += size[j] == mine;
            flags[place] = drawn[place] < (uint32_t)chances[rank];
            counted = place + 1;
        }
        for (uint32_t i = 0; i < asked; i++) {
            const uint32_t place = asking[i];
            asking[left] = place;
            left += size[place] != mine;
        }
        asked = left;
    }
    return 1;
}
/* Three counting sorts, of 11, 10 and 10 bits, from the last entry to the first; the places of the last one are the ranks. */
INLINE void by_sorting(const int32_t *chances, int64_t n, uint8_t *flags, const uint32_t *size, const uint32_t *drawn, uint64_t *one,
                       uint64_t *other) {
    uint32_t low[2048] = {0}, middle[1024] = {0}, high[1024] = {0}, a = 0, b = 0, c = 0;
    for (int64_t j = 0; j < n; j++) {
        low[size[j] & 2047]++, middle[size[j] >> 11 & 1023]++, high[size[j] >> 21]++;
        one[n - 1 - j] = (uint64_t)size[j] << 32 | (uint64_t)j;
    }
    for (int i = 0; i < 2048; i++) {
        const uint32_t count = low[i];
        low[i] = a, a += count;
    }
    for (int i = 0; i < 1024; i++) {
        const uint32_t some = middle[i], rest = high[i];
        middle[i] = b, b += some;
        high[i] = c, c += rest;
    }
    for (int64_t i = 0; i < n; i++) other[low[one[i] >> 32 & 2047]++] = one[i];
    for (int64_t i = 0; i < n; i++) one[middle[other[i] >> 43 & 1023]++] = other[i];
    for (int64_t i = 0; i < n; i++) {
        const uint32_t rank = high[one[i] >> 53]++, place = (uint32_t)one[i];
        flags[place] = drawn[place] < (uint32_t)chances[rank];
    }
}
INLINE void ranked_body(Job *job, int64_t unit, int thread) {
    (void)thread;
    const int64_t first = unit * job->group, last = least(first + job->group, job->rows), begin = first * job->cols;
    const int64_t n = (last - first) * job->cols, padded = (n + TILE - 1) / TILE * TILE;
    const int64_t aligned = (job->cols + TILE - 1) / TILE * TILE; /* whole tiles are written */
    char *memory = malloc((size_t)(aligned * 24 + padded));
    if (!memory) {
        found(&job->no_memory);
        return;
    }
    uint64_t *one = (uint64_t *)memory, *other = one + aligned;
    uint32_t *size = (uint32_t *)(other + aligned), *drawn = size + aligned;
    uint8_t *flags = (uint8_t *)(drawn + aligned);
    for (int64_t row = first; row < last; row++) {
        const int64_t start = row * job->cols;
        uint8_t *here = flags + (row - first) * job->cols;
        EACH_TILE(start, start + job->cols) {
            magnitudes(size + (at - start), job, at, m);
            draw(drawn + (at - start), job->key, at);
        }
        if (!by_bins(job->chances, job->cols, here, size, drawn, (uint32_t *)one, (uint32_t *)other))
            by_sorting(job->chances, job->cols, here, size, drawn, one, other);
    }
    memset(flags + n, 0, (size_t)(padded - n));
    for (int64_t at = 0; at < n; at += TILE) {
        uint64_t words[TILE / 64];
        pack(words, flags + at);
        for (int w = 0; w < TILE / 64 && at + 64 * w < n; w++) job->marks[0][(begin + at) / 64 + w] = words[w];
    }
    free(memory);
}

/* Sums of all magnitudes and of the marked ones. */
INLINE void weigh_body(Job *job, int64_t unit, int thread) {
    (void)thread;
    double all[LANES] = {0}, kept[LANES] = {0};
    EACH_TILE(unit *CHUNK, least((unit + 1) * CHUNK, job->n)) {
        float base[TILE], delta[TILE], marked[TILE];
        uint8_t flags[TILE];
        load(base, &job->base, at, m);
        load_delta(delta, &job->in[0], at, m, base);
        unpack(flags, job->marks[0] + at / 64);
        for (int j = 0; j < TILE; j++) delta[j] = from_bits(bits_of(delta[j]) & MAGNITUDE);
        for (int j = 0; j < TILE; j++) marked[j] = where(mask(flags[j]), delta[j]);
        double sum[LANES] = {0}, some[LANES] = {0};
        for (int r = 0; r < ROWS; r++) {
            for (int l = 0; l < LANES; l++) sum[l] += (double)delta[r * LANES + l];
            for (int l = 0; l < LANES; l++) some[l] += (double)marked[r * LANES + l];
        }
        for (int l = 0; l < LANES; l++) all[l] += sum[l], kept[l] += some[l];
    }
    job->sums[2 * unit] = folded(all), job->sums[2 * unit + 1] = folded(kept);
}

/* out <- base + merged delta. */
INLINE void combine_body(Job *job, int64_t unit, int thread) {
    (void)thread;
    float base[TILE], term[MOST][TILE], result[TILE], votes[TILE], divisor[TILE];
    uint32_t top = 0;
    EACH_TILE(unit *CHUNK, least((unit + 1) * CHUNK, job->n)) {
        load(base, &job->base, at, m);
        for (int j = 0; j < TILE; j++) result[j] = 0.0f;
        for (int i = 0; i < job->k; i++) {
            float *x = term[job->consensus ? i : 0];
            const float by = job->coefficient[i];
            load_delta(x, &job->in[i], at, m, base);
            for (int j = 0; j < TILE; j++) {
                const uint32_t size = bits_of(x[j]) & MAGNITUDE;
                top = size > top ? size : top;
            }
            if (job->marks[i]) {
                uint8_t flags[TILE];
                unpack(flags, job->marks[i] + at / 64);
                for (int j = 0; j < TILE; j++) x[j] = where(mask(flags[j]), by * x[j]);
            } else
                for (int j = 0; j < TILE; j++) x[j] *= by;
            if (!job->consensus)
                for (int j = 0; j < TILE; j++) result[j] += x[j];
        }
        if (job->consensus) {
            for (int j = 0; j < TILE; j++) votes[j] = divisor[j] = 0.0f;
            for (int i = 0; i < job->k; i++)
                if (job->consensus == 1)
                    for (int j = 0; j < TILE; j++) votes[j] += term[i][j];
                else
                    for (int j = 0; j < TILE; j++) votes[j] += (float)((term[i][j] > 0) - (term[i][j] < 0));
            for (int j = 0; j < TILE; j++) votes[j] = votes[j] >= 0 ? 1.0f : -1.0f;
            for (int i = 0; i < job->k; i++) {
                const float weight = job->weight[i];
                for (int j = 0; j < TILE; j++) {
                    const uint32_t part = mask(term[i][j] * votes[j] > 0);
                    result[j] += where(part, term[i][j]);
                    divisor[j] += where(part, weight);
                }
            }
            if (job->divide)
                for (int j = 0; j < TILE; j++) result[j] /= divisor[j] + (float)(divisor[j] == 0);
            for (int j = 0; j < TILE; j++) result[j] *= job->scale;
        }
        for (int j = 0; j < TILE; j++) result[j] += base[j];
        store(job->out, job->out_dtype, at, m, result);
    }
    if (top >= INFINITE) found(&job->bad);
}

/* Whether the largest of `in[0]`'s bit patterns without sign is below Inf's. */
#define LARGEST(T, SIGNLESS, INF)                                                                                                   \
    {                                                                                                                               \
        const T *x = (const T *)job->in[0].at + unit * CHUNK;                                                                       \
        T top = 0;                                                                                                                  \
        for (int64_t j = 0; j < n; j++) {                                                                                           \
            const T size = x[j] & (T)SIGNLESS;                                                                                      \
            top = size > top ? size : top;                                                                                          \
        }                                                                                                                           \
        if (top >= (T)INF) found(&job->bad);                                                                                           \
    }                                                                                                                               \
    break
INLINE void finite_body(Job *job, int64_t unit, int thread) {
    (void)thread;
    const int64_t n = least(CHUNK, job->n - unit * CHUNK);
    switch (job->in[0].dtype) {
    case F32: LARGEST(uint32_t, MAGNITUDE, INFINITE);
    case F64: LARGEST(uint64_t, 0x7FFFFFFFFFFFFFFFu, 0x7FF0000000000000u);
    case BF16: LARGEST(uint16_t, 0x7FFFu, 0x7F80u);
    default: LARGEST(uint16_t, 0x7FFFu, 0x7C00u);
    }
}

/* ---- levels ---- */

#if (defined(__GNUC__) || defined(__clang__)) && defined(__x86_64__)
#ifdef __clang__
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))
#else
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")))
#endif
#define AVX2 __attribute__((target("avx2")))
#define LEVELS(NAME)                                                                                                                \
    static void NAME##_plain(Job *job, int64_t unit, int thread) { NAME##_body(job, unit, thread); }                                \
    AVX2 static void NAME##_avx2(Job *job, int64_t unit, int thread) { NAME##_body(job, unit, thread); }                            \
    AVX512 static void NAME##_avx512(Job *job, int64_t unit, int thread) { NAME##_body(job, unit, thread); }                        \
    static Unit *const NAME##_levels[] = {NAME##_plain, NAME##_avx2, NAME##_avx512};
static int highest_level(void) {
    __builtin_cpu_init();
    const int bytes = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
    return bytes && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") ? 2 : __builtin_cpu_supports("avx2") ? 1 : 0;
}
#else
#define LEVELS(NAME)                                                                                                                \
    static void NAME##_plain(Job *job, int64_t unit, int thread) { NAME##_body(job, unit, thread); }                                \
    static Unit *const NAME##_levels[] = {NAME##_plain};
static int highest_level(void) { return 0; }
#endif
static const char *const LEVEL_NAMES[] = {"plain", "avx2", "avx512"};

LEVELS(gram)
LEVELS(count)
LEVELS(ties)
LEVELS(cut)
LEVELS(random)
LEVELS(draws)
LEVELS(ranked)
LEVELS(weigh)
LEVELS(combine)
LEVELS(finite)

/* Units are taken, `together` at a time, by whichever thread is free. torch's OpenMP runtime is the one already loaded. */
static void share(Unit *const *levels, int level, Job *job, int64_t units, int64_t together, int threads) {
    Unit *unit = levels[level];
    Py_BEGIN_ALLOW_THREADS
#ifdef _OPENMP
    if (threads > 1 && units > together) {
#pragma omp parallel for schedule(dynamic, together) num_threads(threads)
        for (int64_t u = 0; u < units; u++) unit(job, u, omp_get_thread_num());
    } else
#endif
        for (int64_t u = 0; u < units; u++) unit(job, u, 0);
    (void)together, (void)threads;
    Py_END_ALLOW_THREADS
}

/* ---- from Python: addresses of contiguous memory that the caller has checked ---- */

static void *address(PyObject *number) { return PyLong_AsVoidPtr(number); }

/* ((address, dtype), ...) into job->in; 0 with an exception set when it is something else. */
static int sources(PyObject *tuple, Job *job) {
    const Py_ssize_t k = PyTuple_Size(tuple);
    if (k < 1 || k > MOST) {
        if (!PyErr_Occurred()) PyErr_Format(PyExc_ValueError, "1 to %d tensors", (int)MOST);
        return 0;
    }
    job->k = (int)k;
    for (Py_ssize_t i = 0; i < k; i++) {
        PyObject *where;
        if (!PyArg_ParseTuple(PyTuple_GetItem(tuple, i), "Oi", &where, &job->in[i].dtype)) return 0;
        job->in[i].at = address(where);
        if (PyErr_Occurred()) return 0;
    }
    return 1;
}
static int one_source(PyObject *pair, Source *source) {
    PyObject *where;
    if (!PyArg_ParseTuple(pair, "Oi", &where, &source->dtype)) return 0;
    source->at = address(where);
    return !PyErr_Occurred();
}
static int level_is_known(int level) {
    if (level >= 0 && level <= highest_level()) return 1;
    PyErr_SetString(PyExc_ValueError, "no such level");
    return 0;
}
static int64_t chunks(int64_t n) { return (n + CHUNK - 1) / CHUNK; }

static PyObject *py_gram(PyObject *self, PyObject *args) {
    (void)self;
    int level, threads, wide;
    PyObject *base, *in, *sums;
    long long rows, cols;
    Job job = {0};
    if (!PyArg_ParseTuple(args, "iiOOpLLO", &level, &threads, &base, &in, &wide, &rows, &cols, &sums)) return NULL;
    if (!level_is_known(level) || !one_source(base, &job.base) || !sources(in, &job)) return NULL;
    job.wide = wide, job.cols = cols, job.pieces = chunks(cols), job.sums = address(sums);
    if (PyErr_Occurred()) return NULL;
    share(gram_levels, level, &job, rows * job.pieces, cols < CHUNK ? CHUNK / cols : 1, threads);
    Py_RETURN_NONE;
}

static PyObject *py_count(PyObject *self, PyObject *args) {
    (void)self;
    int level, threads;
    PyObject *base, *in, *counts;
    long long n, prefix;
    Job job = {0};
    if (!PyArg_ParseTuple(args, "iiOOLiiiLO", &level, &threads, &base, &in, &n, &job.shift, &job.bins, &job.shares, &prefix, &counts))
        return NULL;
    if (!level_is_known(level) || !one_source(base, &job.base) || !sources(in, &job)) return NULL;
    job.n = n, job.prefix = prefix, job.counts = address(counts);
    if (PyErr_Occurred()) return NULL;
    share(count_levels, level, &job, chunks(n), 1, threads);
    Py_RETURN_NONE;
}

/* ties: fills quota; cut: reads it and fills marks. */
static PyObject *limited(PyObject *args, Unit *const *levels) {
    int level, threads;
    PyObject *base, *in, *quota, *marks;
    long long n;
    Job job = {0};
    if (!PyArg_ParseTuple(args, "iiOOLIIOO", &level, &threads, &base, &in, &n, &job.limit[0], &job.limit[1], &quota, &marks)) return NULL;
    if (!level_is_known(level) || !one_source(base, &job.base) || !sources(in, &job)) return NULL;
    job.n = n, job.quota = address(quota), job.marks[0] = address(marks);
    if (PyErr_Occurred()) return NULL;
    share(levels, level, &job, chunks(n), 1, threads);
    Py_RETURN_NONE;
}
static PyObject *py_ties(PyObject *self, PyObject *args) {
    (void)self;
    return limited(args, ties_levels);
}
static PyObject *py_cut(PyObject *self, PyObject *args) {
    (void)self;
    return limited(args, cut_levels);
}

static PyObject *py_random(PyObject *self, PyObject *args) {
    (void)self;
    int level, threads;
    PyObject *marks;
    unsigned long long key;
    long long n;
    Job job = {0};
    if (!PyArg_ParseTuple(args, "iiLKIO", &level, &threads, &n, &key, &job.below, &marks)) return NULL;
    job.n = n, job.key = key, job.marks[0] = address(marks);
    if (PyErr_Occurred() || !level_is_known(level)) return NULL;
    share(random_levels, level, &job, chunks(n), 1, threads);
    Py_RETURN_NONE;
}

static PyObject *py_draws(PyObject *self, PyObject *args) {
    (void)self;
    int level, threads;
    PyObject *out;
    unsigned long long key;
    long long n, start;
    Job job = {0};
    if (!PyArg_ParseTuple(args, "iiLKLO", &level, &threads, &n, &key, &start, &out)) return NULL;
    job.n = n, job.key = key, job.prefix = start, job.out = address(out);
    if (PyErr_Occurred() || !level_is_known(level)) return NULL;
    share(draws_levels, level, &job, chunks(n), 1, threads);
    Py_RETURN_NONE;
}

static PyObject *py_ranked(PyObject *self, PyObject *args) {
    (void)self;
    int level, threads;
    PyObject *base, *in, *chances, *marks;
    unsigned long long key;
    long long rows, cols;
    Job job = {0};
    if (!PyArg_ParseTuple(args, "iiOOLLKOO", &level, &threads, &base, &in, &rows, &cols, &key, &chances, &marks)) return NULL;
    if (!level_is_known(level) || !one_source(base, &job.base) || !sources(in, &job)) return NULL;
    job.rows = rows, job.cols = cols, job.key = key, job.chances = address(chances), job.marks[0] = address(marks);
    if (PyErr_Occurred()) return NULL;
    job.group = 64; /* rows that end together with a word */
    for (int64_t c = cols; job.group > 1 && c % 2 == 0; c /= 2) job.group /= 2;
    if (job.group * cols < CHUNK) job.group *= CHUNK / (job.group * cols);
    share(ranked_levels, level, &job, (rows + job.group - 1) / job.group, 1, threads);
    if (job.no_memory) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *py_weigh(PyObject *self, PyObject *args) {
    (void)self;
    int level, threads;
    PyObject *base, *in, *marks, *sums;
    long long n;
    Job job = {0};
    if (!PyArg_ParseTuple(args, "iiOOLOO", &level, &threads, &base, &in, &n, &marks, &sums)) return NULL;
    if (!level_is_known(level) || !one_source(base, &job.base) || !sources(in, &job)) return NULL;
    job.n = n, job.marks[0] = address(marks), job.sums = address(sums);
    if (PyErr_Occurred()) return NULL;
    share(weigh_levels, level, &job, chunks(n), 1, threads);
    Py_RETURN_NONE;
}

/* Per model (address of marks or 0, coefficient, weight). */
static PyObject *py_combine(PyObject *self, PyObject *args) {
    (void)self;
    int level, threads;
    PyObject *base, *in, *out, *terms;
    long long n;
    Source target;
    Job job = {0};
    if (!PyArg_ParseTuple(args, "iiOOOLOipf", &level, &threads, &base, &in, &out, &n, &terms, &job.consensus, &job.divide, &job.scale))
        return NULL;
    if (!level_is_known(level) || !one_source(base, &job.base) || !one_source(out, &target) || !sources(in, &job)) return NULL;
    job.n = n, job.out = (char *)target.at, job.out_dtype = target.dtype;
    if (PyTuple_Size(terms) != job.k) return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_ValueError, "as many terms as tensors");
    for (int i = 0; i < job.k; i++) {
        PyObject *marks;
        if (!PyArg_ParseTuple(PyTuple_GetItem(terms, i), "Off", &marks, &job.coefficient[i], &job.weight[i])) return NULL;
        job.marks[i] = address(marks);
        if (PyErr_Occurred()) return NULL;
    }
    share(combine_levels, level, &job, chunks(n), 1, threads);
    return PyBool_FromLong(!job.bad);
}

static PyObject *py_finite(PyObject *self, PyObject *args) {
    (void)self;
    int level, threads;
    PyObject *in;
    long long n;
    Job job = {0};
    if (!PyArg_ParseTuple(args, "iiOL", &level, &threads, &in, &n) || !level_is_known(level) || !sources(in, &job)) return NULL;
    job.n = n;
    share(finite_levels, level, &job, chunks(n), 1, threads);
    return PyBool_FromLong(!job.bad);
}

static PyObject *py_levels(PyObject *self, PyObject *args) {
    (void)self, (void)args;
    return tuple_of(LEVEL_NAMES, highest_level() + 1);
}

#define TOLD(NAME, ARGS, TEXT) {#NAME, py_##NAME, METH_VARARGS, #NAME "(level, threads, " ARGS ")\n\n" TEXT}
static PyMethodDef METHODS[] = {
    TOLD(gram, "base, tensors, wide, rows, cols, sums", "sums [rows * chunks of a row, pairs i <= j] float64: inner products of chunks."),
    TOLD(count, "base, tensors, n, shift, bins, shares, prefix, counts", "Adds to the histogram counts [threads, shares, bins] uint32."),
    TOLD(ties, "base, tensors, n, limit, limit, quota, 0", "quota [chunks, 2] int64: how many magnitudes equal each limit."),
    TOLD(cut, "base, tensors, n, limit, limit, quota, marks", "Marks what is above the first limit and not above the second."),
    TOLD(random, "n, key, below, marks", "Marks the places whose draw is less than `below`."),
    TOLD(draws, "n, key, start, out", "out [n] int32: draws."),
    TOLD(ranked, "base, tensors, rows, cols, key, chances, marks", "Marks the places whose draw is less than their rank's chance."),
    TOLD(weigh, "base, tensors, n, marks, sums", "sums [chunks, 2] float64: of all magnitudes and of the marked."),
    TOLD(combine, "base, tensors, out, n, terms, consensus, divide, scale", "out <- base + merged delta; False: one was not finite."),
    TOLD(finite, "tensors, n", "Whether the one tensor holds neither NaN nor Inf."),
    {"levels", py_levels, METH_NOARGS, "The levels this processor runs, slowest first."},
    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef MODULE = {
    PyModuleDef_HEAD_INIT, "_sift", "Gram matrices and sparse sums of deltas, read in place.", 0, METHODS, NULL, NULL, NULL, NULL};
PyMODINIT_FUNC PyInit__sift(void) { return PyModuleDef_Init(&MODULE); }
