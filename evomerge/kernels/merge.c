/* The loops of a merge, over one contiguous run of a tensor at a time.
 *
 * A step takes 16 elements of every source into float32 registers and writes 16 results, so
 * that each byte is read and written once. `torch_loops.py` has the same arithmetic in the same
 * order: the two agree bit for bit (compile without contraction to fused multiply-adds). Runs
 * are independent, so callers may split a tensor over threads.
 *
 * Types: 0 float32, 1 bfloat16, 2 float16. `base` may be null where it says so. Positions are
 * counted in the whole tensor, of which the run starts at element `start`; bits of a mask are
 * counted from the run.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#define LANES 16
#define BLOCK 256 /* elements of a mask at a time; a multiple of 32 */

enum { F32 = 0, BF16 = 1, F16 = 2 };
enum { KEEP_ALL = 0, KEEP_BITS = 1, KEEP_BAND = 2 };

/* Sixteen lanes whatever the processor's width, so that sums are the same anywhere. */
typedef float lanes_t __attribute__((vector_size(4 * LANES)));
typedef int32_t ints_t __attribute__((vector_size(4 * LANES)));
typedef uint32_t words_t __attribute__((vector_size(4 * LANES)));
typedef uint16_t halves_t __attribute__((vector_size(2 * LANES)));

static const ints_t COUNT_UP = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

#define INLINE static inline __attribute__((always_inline))

INLINE lanes_t all(float x) { return x - (lanes_t){0}; }
INLINE lanes_t magnitude(lanes_t x) { return (lanes_t)((words_t)x & 0x7fffffffu); }
INLINE lanes_t where(ints_t mask, lanes_t x) { return (lanes_t)((ints_t)x & mask); }
INLINE int fewer(int64_t a, int64_t b) { return (int)(a < b ? a : b); }

/* Elements at .. at + n of x, zeros in the lanes above. */
INLINE lanes_t load(const void *x, int type, ptrdiff_t at, int n) {
    lanes_t out = {0};
    if (type == BF16) {
        halves_t h = {0};
        const uint16_t *y = (const uint16_t *)x + at;
        if (n == LANES) memcpy(&h, y, sizeof h);
        else memcpy(&h, y, (size_t)n * 2);
        return (lanes_t)(__builtin_convertvector(h, words_t) << 16);
    }
    if (type == F32) {
        const float *y = (const float *)x + at;
        if (n == LANES) memcpy(&out, y, sizeof out);
        else memcpy(&out, y, (size_t)n * 4);
        return out;
    }
    const _Float16 *y = (const _Float16 *)x + at;
    float wide[LANES] = {0};
    for (int l = 0; l < n; l++) wide[l] = (float)y[l];
    memcpy(&out, wide, sizeof out);
    return out;
}

/* Rounds once, to the nearest, ties to even; lanes that are not finite are -1 in the result. */
INLINE ints_t store(void *to, int type, ptrdiff_t at, lanes_t x, int n) {
    words_t u = (words_t)x;
    if (type == BF16) {
        words_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
        ints_t nan = (ints_t)((u & 0x7fffffffu) > 0x7f800000u);
        rounded = (words_t)(((ints_t)rounded & ~nan) | (0x7fc0 & nan));
        halves_t h = __builtin_convertvector(rounded, halves_t);
        uint16_t *y = (uint16_t *)to + at;
        if (n == LANES) memcpy(y, &h, sizeof h);
        else memcpy(y, &h, (size_t)n * 2);
        return (ints_t)((rounded & 0x7f80u) == 0x7f80u);
    }
    if (type == F32) {
        float *y = (float *)to + at;
        if (n == LANES) memcpy(y, &x, sizeof x);
        else memcpy(y, &x, (size_t)n * 4);
        return (ints_t)((u & 0x7f800000u) == 0x7f800000u);
    }
    _Float16 *y = (_Float16 *)to + at;
    int32_t bad[LANES] = {0};
    for (int l = 0; l < n; l++) {
        uint16_t bits;
        y[l] = (_Float16)x[l];
        memcpy(&bits, y + l, 2);
        bad[l] = (bits & 0x7c00u) == 0x7c00u ? -1 : 0;
    }
    ints_t out;
    memcpy(&out, bad, sizeof out);
    return out;
}

INLINE int64_t lanes_set(ints_t mask) {
    int64_t count = 0;
    for (int l = 0; l < LANES; l++) count -= mask[l];
    return count;
}

INLINE double lanes_sum(lanes_t x) {
    double sum = 0;
    for (int l = 0; l < LANES; l++) sum += (double)x[l];
    return sum;
}

/* -- weighted sums ------------------------------------------------------------------------ */

/* out = offset + sum_i c[i] x_i; with row_length > 0 every row has coefficients of its own,
 * c[row * m + i]. A term with coefficient 0 is left out. Returns how many results are not
 * finite. */
INLINE int64_t combine(void *out, int out_type, int64_t from, int64_t to, int m,
                       const void *const *xs, const int *types, const float *c, float offset,
                       int one_type) {
    ints_t bad = {0};
    int64_t at = from;
#define STEP(N)                                                                                  \
    lanes_t sum = all(offset);                                                                   \
    for (int i = 0; i < m; i++)                                                                  \
        if (c[i] != 0.0f) sum += c[i] * load(xs[i], one_type >= 0 ? one_type : types[i], at, N); \
    bad += store(out, out_type, at, sum, N) & (COUNT_UP < (N))
    for (; at + LANES <= to; at += LANES) {
        STEP(LANES);
    }
    if (at < to) {
        STEP((int)(to - at));
    }
#undef STEP
    return lanes_set(bad);
}

int64_t evomerge_combine(void *out, int out_type, int64_t n, int64_t start, int m,
                         const void *const *xs, const int *types, const float *c,
                         int64_t row_length, float offset) {
    int plain = out_type == BF16;
    for (int i = 0; i < m; i++) plain &= types[i] == BF16;
    int64_t bad = 0;
    for (int64_t at = 0; at < n;) {
        int64_t to = n;
        const float *now = c;
        if (row_length > 0) {
            int64_t row = (start + at) / row_length;
            to = (row + 1) * row_length - start;
            to = to < n ? to : n;
            now = c + row * m;
        }
        bad += plain ? combine(out, BF16, at, to, m, xs, types, now, offset, BF16)
                     : combine(out, out_type, at, to, m, xs, types, now, offset, -1);
        at = to;
    }
    return bad;
}

/* -- task vectors that are thinned out ---------------------------------------------------- */

/* Draws of 24 bits: element i has half i % 2 of splitmix64 at key + (i / 2 + 1) * golden ratio,
 * without its lowest 8 bits (masks.py). */
INLINE uint64_t split(uint64_t key, uint64_t pair) {
    uint64_t z = key + (pair + 1) * 0x9E3779B97F4A7C15ull;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

INLINE int any(ints_t mask) {
#ifdef __AVX512F__
    return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#else
    uint64_t parts[8], hit = 0;
    memcpy(parts, &mask, sizeof parts);
    for (int l = 0; l < 8; l++) hit |= parts[l];
    return hit != 0;
#endif
}

/* Draws of ties, 24 bits, of the 16 elements from `from` on: a 32-bit mixer of two multiplications
 * and three shifts (lowbias32 of C. Wellons' hash-prospector) on the position. */
INLINE words_t tie_draws(int64_t from) {
    words_t x = (words_t)COUNT_UP + (uint32_t)from;
    uint32_t high = (uint32_t)((uint64_t)from >> 32) * 0x9E3779B1u;
    words_t carried = (words_t)(x < (uint32_t)from); /* lanes with 1 more in the upper half */
    x ^= high ^ (carried & (high ^ (high + 0x9E3779B1u)));
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    x ^= x >> 16;
    return x >> 8;
}

/* A cut keeps magnitudes from ends[1] on, and of those from ends[0] to there the ones whose
 * draw is below the limit. */
INLINE ints_t within(lanes_t a, const float *ends, uint32_t limit, words_t draws) {
    return (a >= ends[1]) | ((a >= ends[0]) & (ints_t)(draws < limit));
}

/* Lanes of a band: within the outer cut (the second) and not within the inner one. */
INLINE ints_t in_band(lanes_t d, const float *ends, const uint32_t *limits, words_t draws) {
    lanes_t a = magnitude(d);
    ints_t in = within(a, ends + 2, limits[1], draws);
    return ends[0] == __builtin_inff() ? in : in & ~within(a, ends, limits[0], draws);
}

/* Zeroes the lanes whose bit, from bit `at` of a mask on, is not set. */
INLINE lanes_t keep_bits(lanes_t d, const uint32_t *words, int64_t at) {
    uint32_t word = words[at >> 5] >> (at & 31);
#ifdef __AVX512F__
    return (lanes_t)_mm512_maskz_mov_ps((__mmask16)word, (__m512)d);
#else
    return where(-(ints_t)((((words_t){0} + word) >> (words_t)COUNT_UP) & 1u), d);
#endif
}

/* out = base + scale * sum_i c_i keep_i(x_i - base), over the sources that agree with the sign
 * of that sum where `consensus`; divided by the sum of their w_i where `normalize` too (a
 * divisor of magnitude up to `least` counts as 1). Returns how many results are not finite. */
INLINE ints_t thin_step(void *out, int out_type, int64_t at, int n, int64_t start, int m,
                        const void *base, int base_type, const void *const *xs, const int *types,
                        const float *c, const float *w, const int *modes, const float *cuts,
                        const uint32_t *limits, const uint32_t *const *words, float scale,
                        int normalize, int consensus, float least, int bands) {
    lanes_t terms[m > 0 ? m : 1];
    lanes_t b = load(base, base_type, at, n), total = {0};
    words_t draws = bands ? tie_draws(start + at) : (words_t){0};
    for (int i = 0; i < m; i++) {
        lanes_t d = load(xs[i], types ? types[i] : BF16, at, n) - b;
        if (modes[i] == KEEP_BITS) d = keep_bits(d, words[i], at);
        if (modes[i] == KEEP_BAND)
            d = where(in_band(d, cuts + 4 * i, limits + 2 * i, draws), d);
        terms[i] = c[i] * d;
        total += terms[i];
    }
    if (consensus) {
        lanes_t mixed = {0}, divisor = {0};
        words_t turn = (words_t)~(total >= 0.0f) & 0x80000000u; /* sign bits to flip */
        for (int i = 0; i < m; i++) {
            ints_t agrees = (lanes_t)((words_t)terms[i] ^ turn) > 0.0f;
            mixed += where(agrees, terms[i]);
            if (normalize) divisor += where(agrees, all(w[i]));
        }
        if (normalize) {
            ints_t none = magnitude(divisor) <= least;
            mixed /= (lanes_t)(((ints_t)divisor & ~none) | ((ints_t)all(1.0f) & none));
        }
        total = mixed;
    }
    return store(out, out_type, at, b + scale * total, n) & (COUNT_UP < n);
}

/* The loop over whole steps, and what is left; `types` is null where all is bfloat16. */
#define THIN(M, TYPE, BASE_TYPE, TYPES, NORMALIZE, CONSENSUS)                                    \
    do {                                                                                         \
        for (; at + LANES <= n; at += LANES)                                                     \
            bad += thin_step(out, TYPE, at, LANES, start, M, base, BASE_TYPE, xs, TYPES, c, w,   \
                             modes, cuts, limits, words, scale, NORMALIZE, CONSENSUS, least,     \
                             bands);                                                             \
        if (at < n)                                                                              \
            bad += thin_step(out, TYPE, at, (int)(n - at), start, M, base, BASE_TYPE, xs, TYPES, \
                             c, w, modes, cuts, limits, words, scale, NORMALIZE, CONSENSUS,      \
                             least, bands);                                                      \
    } while (0)

#define PLAIN(M)                                                                                 \
    do {                                                                                         \
        if (!consensus) THIN(M, BF16, BF16, 0, 0, 0);                                            \
        else if (!normalize) THIN(M, BF16, BF16, 0, 0, 1);                                       \
        else THIN(M, BF16, BF16, 0, 1, 1);                                                       \
    } while (0)

int64_t evomerge_thin(void *out, int out_type, int64_t n, int64_t start, int m, const void *base,
                      int base_type, const void *const *xs, const int *types, const float *c,
                      const float *w, const int *modes, const float *cuts,
                      const uint32_t *limits, const uint32_t *const *words, float scale,
                      int normalize, int consensus, float least) {
    ints_t bad = {0};
    int64_t at = 0;
    int bands = 0, plain = out_type == BF16 && base_type == BF16;
    for (int i = 0; i < m; i++) {
        bands |= modes[i] == KEEP_BAND;
        plain &= types[i] == BF16;
    }
    if (!plain) THIN(m, out_type, base_type, types, normalize, consensus);
    else if (m == 2) PLAIN(2);
    else if (m == 3) PLAIN(3);
    else PLAIN(m);
    return lanes_set(bad);
}

#undef PLAIN
#undef THIN

/* -- masks -------------------------------------------------------------------------------- */

/* Draws of elements from .. from + n. `to` has room for n + 16; returns where the first of them
 * lies, as `from` may be odd. */
INLINE const uint32_t *draw(uint32_t *restrict to, uint64_t key, int64_t from, int n) {
    uint64_t halves[BLOCK / 2 + 8];
    int pairs = n / 2 + 1;
    for (int j = 0; j < pairs; j++) halves[j] = split(key, (uint64_t)(from / 2 + j));
    for (int j = 0; j < pairs; j++) {
        to[2 * j] = (uint32_t)halves[j] >> 8;
        to[2 * j + 1] = (uint32_t)(halves[j] >> 40);
    }
    return to + from % 2;
}

/* Packs flags of 0 and 1 into words from bit `from`, a multiple of 32, on. */
INLINE void pack(uint32_t *words, const uint32_t *restrict flags, int64_t from, int n) {
    for (int j = 0; j < n; j += 32) {
        uint32_t word = 0;
        for (int l = 0; l < 32; l++) word |= flags[j + l] << l;
        words[(from + j) >> 5] = word;
    }
}

/* Adds sum |d| and sum |d| over the flagged to sums. */
INLINE void add_sums(double *sums, const uint32_t *flags, const void *base, int base_type,
                     const void *x, int type, int64_t at, int count) {
    lanes_t whole = {0}, kept = {0};
    for (int j = 0; j < count; j += LANES) {
        int n = fewer(count - j, LANES);
        ints_t keep;
        lanes_t a = load(x, type, at + j, n);
        if (base) a -= load(base, base_type, at + j, n);
        a = magnitude(a);
        memcpy(&keep, flags + j, sizeof keep);
        whole += a;
        kept += where(-keep, a);
    }
    sums[0] += lanes_sum(whole);
    sums[1] += lanes_sum(kept);
}

typedef uint64_t pairs_t __attribute__((vector_size(4 * LANES)));

/* Draws of the 16 elements whose first pair has the counter z = key + (from / 2 + 1) * golden
 * ratio in lane 0, for an even `from`. */
INLINE words_t pair_draws(pairs_t z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    z ^= z >> 31;
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    return (words_t)z >> 8;
#else
    return (words_t)((z << 32) | (z >> 32)) >> 8;
#endif
}

/* Sets 16 bits of a mask from bit `at`, a multiple of 16, on. */
INLINE void put_bits(uint32_t *words, ints_t mask, int64_t at) {
    uint32_t bits = 0;
#ifdef __AVX512F__
    bits = _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask);
#else
    for (int l = 0; l < LANES; l++) bits |= (uint32_t)(mask[l] & 1) << l;
#endif
    words[at >> 5] = at & 16 ? (words[at >> 5] & 0xffffu) | bits << 16 : bits;
}

/* A random mask: an element is kept if its draw is below `limit` (density * 2^24). Where sums
 * is not null, sum |d| and sum |d| over the kept are added to it. */
INLINE void chance(uint32_t *words, int64_t count, int64_t start, uint64_t key, uint32_t limit,
                   const void *base, int base_type, const void *x, int type, double *sums) {
    const uint64_t golden = 0x9E3779B97F4A7C15ull;
    const pairs_t steps = {0, 1, 2, 3, 4, 5, 6, 7};
    uint32_t odd[BLOCK + 16];
    for (int64_t block = 0; block < count; block += BLOCK) {
        int64_t to = block + BLOCK < count ? block + BLOCK : count;
        lanes_t whole = {0}, kept = {0};
        pairs_t z = key + ((uint64_t)((start + block) / 2 + 1) + steps) * golden;
        const uint32_t *u = start % 2 ? draw(odd, key, start + block, BLOCK) : 0;
        int64_t at = block;
#define STEP(N)                                                                                  \
    words_t draws;                                                                               \
    if (u) memcpy(&draws, u + (at - block), sizeof draws);                                       \
    else draws = pair_draws(z);                                                                  \
    ints_t keep = (ints_t)(draws < limit);                                                       \
    put_bits(words, keep, at);                                                                   \
    if (sums) {                                                                                  \
        lanes_t a = load(x, type, at, N);                                                        \
        if (base) a -= load(base, base_type, at, N);                                             \
        a = magnitude(a);                                                                        \
        whole += a;                                                                              \
        kept += where(keep, a);                                                                  \
    }
        for (; at + LANES <= to; at += LANES, z += 8 * golden) {
            STEP(LANES)
        }
        if (at < to) {
            STEP((int)(to - at))
        }
#undef STEP
        if (!sums) continue;
        sums[0] += lanes_sum(whole);
        sums[1] += lanes_sum(kept);
    }
}

void evomerge_chance(uint32_t *words, int64_t n, int64_t start, uint64_t key, uint32_t limit,
                     const void *base, int base_type, const void *x, int type, double *sums) {
    if (!sums) chance(words, n, start, key, limit, base, base_type, x, type, 0);
    else if (type == BF16 && base && base_type == BF16)
        chance(words, n, start, key, limit, base, BF16, x, BF16, sums);
    else chance(words, n, start, key, limit, base, base_type, x, type, sums);
}

#define LEVELS 32

/* t[r] of a table of 32 for 16 lanes at once. */
INLINE lanes_t look_up(const float *t, ints_t r) {
#if defined(__GNUC__) && !defined(__clang__)
    lanes_t low, high;
    memcpy(&low, t, sizeof low);
    memcpy(&high, t + LANES, sizeof high);
    return __builtin_shuffle(low, high, r);
#else
    lanes_t out;
    for (int l = 0; l < LANES; l++) out[l] = t[r[l]];
    return out;
#endif
}

/* A random mask whose probability grows with the rank of the magnitude in its row. `table` has
 * 32 rising magnitudes for every row, the first of them -1, of which `levels` count. An element
 * that reaches number r is kept if its draw u is below low + r * step, that is if r is above
 * (u - low) / step; it cannot be where that leads to `levels` or more. Of elements that equal
 * number r those with an even draw reach it, so that a crowd of them has its mean rank. */
INLINE ints_t reached(words_t draws, lanes_t d, const float *t, float low, float inverse_step,
                      int levels) {
    lanes_t v = __builtin_convertvector((ints_t)draws, lanes_t) * 0x1p-24f;
    v = (v - low) * inverse_step + 1.0f;
    v = where(v > 0.0f, v);
    ints_t above = v > (float)LEVELS; /* also keeps the conversion within its range */
    v = (lanes_t)(((ints_t)v & ~above) | ((ints_t)all((float)LEVELS) & above));
    ints_t r = __builtin_convertvector(v, ints_t);
    lanes_t least = look_up(t, r & (LEVELS - 1));
    return (r < levels) & ((d > least) | ((d == least) & ((ints_t)(draws & 1) == 0)));
}

/* The same for runs and rows of whole steps of 16. */
INLINE void ranked_steps(uint32_t *words, int64_t count, int64_t start, uint64_t key, float low,
                         float inverse_step, int levels, const float *table, int64_t row_length,
                         const void *base, int base_type, const void *x, int type,
                         double *sums) {
    const uint64_t golden = 0x9E3779B97F4A7C15ull;
    const pairs_t steps = {0, 1, 2, 3, 4, 5, 6, 7};
    int64_t row = start / row_length, row_end = (row + 1) * row_length - start;
    for (int64_t block = 0; block < count; block += BLOCK) {
        int64_t to = block + BLOCK < count ? block + BLOCK : count;
        lanes_t whole = {0}, kept = {0};
        pairs_t z = key + ((uint64_t)((start + block) / 2 + 1) + steps) * golden;
        for (int64_t at = block; at < to; at += LANES, z += 8 * golden) {
            if (at == row_end) {
                row++;
                row_end += row_length;
            }
            lanes_t a = load(x, type, at, LANES);
            if (base) a -= load(base, base_type, at, LANES);
            a = magnitude(a);
            ints_t keep = reached(pair_draws(z), a, table + row * LEVELS, low, inverse_step, levels);
            put_bits(words, keep, at);
            whole += a;
            kept += where(keep, a);
        }
        if (!sums) continue;
        sums[0] += lanes_sum(whole);
        sums[1] += lanes_sum(kept);
    }
}

void evomerge_ranked(uint32_t *words, int64_t n, int64_t start, uint64_t key, float low,
                     float inverse_step, int levels, const float *table, int64_t row_length,
                     const void *base, int base_type, const void *x, int type, double *sums) {
    uint32_t draws[BLOCK + 16], flags[BLOCK + LANES];
    float a[BLOCK + LANES];
    int plain = type == BF16 && base && base_type == BF16;
    if (row_length % LANES == 0 && start % LANES == 0 && n % LANES == 0) {
        if (plain)
            ranked_steps(words, n, start, key, low, inverse_step, levels, table, row_length, base,
                         BF16, x, BF16, sums);
        else
            ranked_steps(words, n, start, key, low, inverse_step, levels, table, row_length, base,
                         base_type, x, type, sums);
        return;
    }
    for (int64_t at = 0; at < n; at += BLOCK) {
        int count = fewer(n - at, BLOCK);
        for (int j = 0; j < count; j += LANES) {
            lanes_t d;
            if (plain && count - j >= LANES) {
                d = load(x, BF16, at + j, LANES) - load(base, BF16, at + j, LANES);
            } else {
                d = load(x, type, at + j, fewer(count - j, LANES));
                if (base) d -= load(base, base_type, at + j, fewer(count - j, LANES));
            }
            d = magnitude(d);
            memcpy(a + j, &d, sizeof d);
        }
        const uint32_t *u = draw(draws, key, start + at, BLOCK);
        int64_t row = (start + at) / row_length;
        for (int from = 0; from < count; row++) {
            int to = fewer((row + 1) * row_length - (start + at), count);
            const float *t = table + row * LEVELS;
            for (int j = from; j < to; j += LANES) {
                words_t k;
                lanes_t d;
                memcpy(&k, u + j, sizeof k);
                memcpy(&d, a + j, sizeof d);
                ints_t keep = -reached(k, d, t, low, inverse_step, levels);
                memcpy(flags + j, &keep, sizeof keep);
            }
            from = to;
        }
        for (int j = count; j % 32; j++) flags[j] = 0;
        pack(words, flags, at, count);
        if (sums) add_sums(sums, flags, 0, F32, a, F32, 0, count);
    }
}

/* Adds sum |d| and sum |d| within a band to sums. */
void evomerge_band_sums(int64_t count, int64_t start, const void *base, int base_type,
                        const void *x, int type, const float *cuts, const uint32_t *limits,
                        double *sums) {
    for (int64_t block = 0; block < count; block += BLOCK) {
        lanes_t whole = {0}, kept = {0};
        int64_t to = block + BLOCK < count ? block + BLOCK : count;
        for (int64_t at = block; at < to; at += LANES) {
            int n = fewer(to - at, LANES);
            lanes_t d = load(x, type, at, n);
            if (base) d -= load(base, base_type, at, n);
            whole += magnitude(d);
            kept += magnitude(where(in_band(d, cuts, limits, tie_draws(start + at)), d));
        }
        sums[0] += lanes_sum(whole);
        sums[1] += lanes_sum(kept);
    }
}

/* -- statistics --------------------------------------------------------------------------- */

/* Adds to counts[bits of |d| >> shift]. */
void evomerge_histogram(uint32_t *counts, int shift, int64_t count, const void *base,
                        int base_type, const void *x, int type) {
    uint32_t bins[LANES];
    for (int64_t at = 0; at < count; at += LANES) {
        int n = fewer(count - at, LANES);
        lanes_t d = load(x, type, at, n);
        if (base) d -= load(base, base_type, at, n);
        words_t b = (words_t)magnitude(d) >> shift;
        memcpy(bins, &b, sizeof bins);
        for (int l = 0; l < n; l++) counts[bins[l]]++;
    }
}

#define STEPS 8

/* Magnitudes in one bin of each source's histogram, in order. `found` counts them and stays
 * within `room`. */
INLINE void gather(int64_t count, int m, const void *base, int base_type,
                   const void *const *xs, const int *types, const uint32_t *bins, int shift,
                   float *const *values, const int64_t *room, int64_t *found, int plain) {
    for (int64_t block = 0; block < count; block += STEPS * LANES) {
        int steps = fewer((count - block + LANES - 1) / LANES, STEPS);
        lanes_t b[STEPS] = {{0}};
        for (int k = 0; k < steps && base; k++)
            b[k] = load(base, plain ? BF16 : base_type, block + k * LANES,
                        fewer(count - block - k * LANES, LANES));
        for (int i = 0; i < m; i++) {
            words_t a[STEPS];
            ints_t hit[STEPS], hits = {0};
            for (int k = 0; k < steps; k++) {
                int64_t at = block + k * LANES;
                int n = fewer(count - at, LANES);
                a[k] = (words_t)magnitude(load(xs[i], plain ? BF16 : types[i], at, n) - b[k]);
                hit[k] = ((a[k] >> shift) == bins[i]) & (COUNT_UP < n);
                hits |= hit[k];
            }
            if (!any(hits)) continue;
            for (int k = 0; k < steps; k++) {
                if (!any(hit[k])) continue;
                uint32_t bits[LANES];
                int32_t here[LANES];
                memcpy(bits, a + k, sizeof bits);
                memcpy(here, hit + k, sizeof here);
                for (int l = 0; l < LANES; l++) {
                    if (!here[l] || found[i] >= room[i]) continue;
                    memcpy(values[i] + found[i], bits + l, 4);
                    found[i]++;
                }
            }
        }
    }
}

void evomerge_gather(int64_t count, int m, const void *base, int base_type,
                     const void *const *xs, const int *types, const uint32_t *bins, int shift,
                     float *const *values, const int64_t *room, int64_t *found) {
    int plain = base && base_type == BF16;
    for (int i = 0; i < m; i++) plain &= types[i] == BF16;
    if (plain)
        gather(count, m, base, base_type, xs, types, bins, shift, values, room, found, 1);
    else
        gather(count, m, base, base_type, xs, types, bins, shift, values, room, found, 0);
}

/* Magnitudes of row-wise sorted |d| at `ranks`, `levels` of them for every row of `table`, whose
 * rows have LEVELS numbers; the float32 number before it where the rank before has a smaller one
 * still. `work` has room for two rows. */
void evomerge_row_table(float *table, int64_t rows, int64_t row_length, int levels,
                        const int64_t *ranks, const void *base, int base_type, const void *x,
                        int type, uint32_t *work) {
    for (int64_t row = 0; row < rows; row++) {
        uint32_t *from = work, *to = work + row_length;
        uint32_t counts[3][2048] = {{0}};
        for (int64_t j = 0; j < row_length; j += LANES) {
            int n = fewer(row_length - j, LANES);
            lanes_t d = load(x, type, row * row_length + j, n);
            if (base) d -= load(base, base_type, row * row_length + j, n);
            words_t u = (words_t)magnitude(d);
            memcpy(from + j, &u, (size_t)n * 4);
        }
        for (int64_t j = 0; j < row_length; j++) {
            counts[0][from[j] & 2047]++;
            counts[1][from[j] >> 11 & 2047]++;
            counts[2][from[j] >> 22]++;
        }
        for (int pass = 0; pass < 3; pass++) { /* radix sort, 11 bits at a time */
            uint32_t sum = 0;
            for (int b = 0; b < 2048; b++) {
                uint32_t count = counts[pass][b];
                counts[pass][b] = sum;
                sum += count;
            }
            for (int64_t j = 0; j < row_length; j++)
                to[counts[pass][from[j] >> (11 * pass) & 2047]++] = from[j];
            uint32_t *swap = from;
            from = to;
            to = swap;
        }
        for (int r = 0; r < levels; r++) {
            uint32_t value = from[ranks[r]];
            if (ranks[r] > 0) value -= value - from[ranks[r] - 1] > 1;
            memcpy(table + row * LEVELS + r, &value, 4);
        }
    }
}

/* Adds the m x m dot products of x_i - base (of x_i where base is null) to gram. Returns 1 where
 * there is no memory for them. */
int64_t evomerge_gram(double *gram, int64_t count, int m, const void *base, int base_type,
                   const void *const *xs, const int *types) {
    size_t room = ((size_t)m * (size_t)m + (size_t)m) * sizeof(lanes_t);
    lanes_t *sums = aligned_alloc(sizeof(lanes_t), room ? room : sizeof(lanes_t));
    if (!sums) return 1;
    lanes_t *d = sums + (size_t)m * (size_t)m;
    for (int64_t block = 0; block < count; block += BLOCK) {
        int64_t to = block + BLOCK < count ? block + BLOCK : count;
        memset(sums, 0, (size_t)m * (size_t)m * sizeof *sums);
        for (int64_t at = block; at < to; at += LANES) {
            int n = fewer(to - at, LANES);
            lanes_t b = base ? load(base, base_type, at, n) : (lanes_t){0};
            for (int i = 0; i < m; i++) d[i] = load(xs[i], types[i], at, n) - b;
            for (int i = 0; i < m; i++)
                for (int k = i; k < m; k++) sums[i * m + k] += d[i] * d[k];
        }
        for (int i = 0; i < m; i++)
            for (int k = i; k < m; k++) {
                double sum = lanes_sum(sums[i * m + k]);
                gram[i * m + k] += sum;
                if (k != i) gram[k * m + i] += sum;
            }
    }
    free(sums);
    return 0;
}

/* How many of n values are NaN or infinite. */
int64_t evomerge_non_finite(const void *x, int type, int64_t count) {
    int64_t bad = 0;
    for (int64_t at = 0; at < count; at += LANES) {
        ints_t here = ((words_t)load(x, type, at, fewer(count - at, LANES)) & 0x7f800000u) == 0x7f800000u;
        if (any(here)) bad += lanes_set(here);
    }
    return bad;
}
