/* What stands between the matrix products of a transformer, for few rows, in bfloat16 with float32 inside.

   Every row is computed by itself and in one order, so that it does not depend on its neighbours or on the number of threads.
   N tokens, D width, H query heads, K key and value heads, E width of a head, J = H + K, T tokens that a row of the cache has room for. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef uint16_t bf16;

#define MOST_WIDTH 512 /* of a head, so that its sums stay on the stack */
#define LANES 16       /* numbers that are looked at together */
#define BLOCK 64       /* columns that are added up before others are */
#define MANY 32768     /* multiplications from which on other threads are worth waking */

static inline float wide(bf16 x) {
    uint32_t bits = (uint32_t)x << 16;
    float y;
    memcpy(&y, &bits, 4);
    return y;
}

static inline bf16 narrow(float x) { /* to nearest, ties to even */
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return (bf16)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

static inline float exponential(float x) { /* for x <= 0 or not much above, a relative error of 1e-7 or so; plain arithmetic, which vectorises */
    float t = x * 1.44269504f;
    t = t < -126.0f ? -126.0f : t > 126.0f ? 126.0f : t;
    float whole = floorf(t + 0.5f), f = t - whole;
    float y = 1.0f + f * (0.693147182f + f * (0.240226462f + f * (0.0555028863f + f * (0.00961814f + f * (0.00133335f + f * 0.000154f)))));
    uint32_t bits = (uint32_t)((int32_t)whole + 127) << 23;
    float power;
    memcpy(&power, &bits, 4);
    return x < -87.0f ? 0.0f : y * power;
}

static inline float largest(const float *x, int64_t n) {
    float of[LANES], most = x[0];
    for (int64_t i = 0; i < LANES; i++) of[i] = most;
    int64_t whole = n / LANES * LANES;
    for (int64_t i = 0; i < whole; i += LANES)
        for (int64_t j = 0; j < LANES; j++) of[j] = x[i + j] > of[j] ? x[i + j] : of[j];
    for (int64_t i = whole; i < n; i++) most = x[i] > most ? x[i] : most;
    for (int64_t j = 0; j < LANES; j++) most = of[j] > most ? of[j] : most;
    return most;
}

/* out = x / sqrt(mean(x^2) + eps), [N, D] */
void norm(const bf16 *x, bf16 *out, int64_t N, int64_t D, float eps) {
#pragma omp parallel for schedule(static) if (N * D > MANY)
    for (int64_t n = 0; n < N; n++) {
        const bf16 *in = x + n * D;
        float sum = 0;
        for (int64_t d = 0; d < D; d++) sum += wide(in[d]) * wide(in[d]);
        float scale = 1.0f / sqrtf(sum / (float)D + eps);
        for (int64_t d = 0; d < D; d++) out[n * D + d] = narrow(wide(in[d]) * scale);
    }
}

/* out = silu(gate) * up, [N, F] from [N, 2F] */
void gate(const bf16 *gate_up, bf16 *out, int64_t N, int64_t F) {
#pragma omp parallel for schedule(static) if (N * F > MANY)
    for (int64_t n = 0; n < N; n++) {
        const bf16 *g = gate_up + 2 * n * F, *up = g + F;
        for (int64_t f = 0; f < F; f++) {
            float x = wide(g[f]);
            out[n * F + f] = narrow(x / (1.0f + exponential(-x)) * wide(up[f]));
        }
    }
}

/* Queries and keys of qkv [N, H + 2K, E], in place: normed, weighted by weights [J, E] and turned by their positions; tables [.., E/2]. */
void turn(bf16 *qkv, const float *weights, const float *cos, const float *sin, const int64_t *positions, int64_t N, int64_t J, int64_t K,
          int64_t E, float eps) {
    int64_t half = E / 2;
#pragma omp parallel for schedule(static) if (N * J * E > MANY)
    for (int64_t n = 0; n < N; n++) {
        const float *c = cos + positions[n] * half, *s = sin + positions[n] * half;
        for (int64_t j = 0; j < J; j++) {
            bf16 *head = qkv + (n * (J + K) + j) * E;
            const float *w = weights + j * E;
            float sum = 0;
            for (int64_t e = 0; e < E; e++) sum += wide(head[e]) * wide(head[e]);
            float scale = 1.0f / sqrtf(sum / (float)E + eps);
            for (int64_t e = 0; e < half; e++) {
                float low = wide(head[e]) * scale * w[e], high = wide(head[e + half]) * scale * w[e + half];
                head[e] = narrow(low * c[e] - high * s[e]);
                head[e + half] = narrow(high * c[e] + low * s[e]);
            }
        }
    }
}

/* softmax(q k) v of one query head over the first `seen` keys and values of its row. */
static inline __attribute__((always_inline)) void head_over(const bf16 *query, const bf16 *keys, const bf16 *values, bf16 *out, float *p,
                                                            int64_t seen, int64_t E) {
    float q[MOST_WIDTH], sums[MOST_WIDTH], total = 0;
    for (int64_t e = 0; e < E; e++) q[e] = wide(query[e]), sums[e] = 0;
    for (int64_t t = 0; t < seen; t++) {
        float score = 0;
        for (int64_t e = 0; e < E; e++) score += q[e] * wide(keys[t * E + e]);
        p[t] = score;
    }
    float most = largest(p, seen);
    for (int64_t t = 0; t < seen; t++) {
        p[t] = exponential(p[t] - most);
        total += p[t];
    }
    for (int64_t t = 0; t < seen; t++)
        for (int64_t e = 0; e < E; e++) sums[e] += p[t] * wide(values[t * E + e]);
    for (int64_t e = 0; e < E; e++) out[e] = narrow(sums[e] / total);
}

/* Keys and values of Q tokens of each of B rows, turned already, go to their positions [B, Q] in kept [2, B, K, T, E]; out [B Q, H, E] is
   what their queries find up to there. scores: room for [B Q H, T] numbers. */
void attend(const bf16 *qkv, bf16 *kept, bf16 *out, float *scores, const int64_t *positions, int64_t B, int64_t Q, int64_t H, int64_t K,
            int64_t E, int64_t T) {
    int64_t reach = 0, group = H / K;
    for (int64_t n = 0; n < B * Q; n++) {
        const bf16 *key = qkv + (n * (H + 2 * K) + H) * E, *value = key + K * E;
        reach = positions[n] >= reach ? positions[n] + 1 : reach;
        for (int64_t k = 0; k < K; k++) {
            bf16 *target = kept + (((n / Q) * K + k) * T + positions[n]) * E;
            memcpy(target, key + k * E, E * sizeof(bf16));
            memcpy(target + B * K * T * E, value + k * E, E * sizeof(bf16));
        }
    }
#pragma omp parallel for schedule(static) if (B * Q * H * reach * E > 4 * MANY)
    for (int64_t item = 0; item < B * Q * H; item++) {
        int64_t n = item / H, h = item % H;
        const bf16 *query = qkv + (n * (H + 2 * K) + h) * E, *keys = kept + ((n / Q) * K + h / group) * T * E;
        const bf16 *values = keys + B * K * T * E;
        float *p = scores + item * T;
        if (E == 64)
            head_over(query, keys, values, out + item * E, p, positions[n] + 1, 64);
        else
            head_over(query, keys, values, out + item * E, p, positions[n] + 1, E);
    }
}

/* One column for every row of logits [N, C], where -inf is never chosen: that at which the sum of exp(logit / temperature) passes the share
   noise of the whole. Returns 0, or 1 without memory. */
int draw(const float *logits, const double *noise, int64_t *chosen, int64_t N, int64_t C, float temperature) {
    int64_t blocks = (C + BLOCK - 1) / BLOCK;
    double *room = malloc((size_t)(N * blocks) * sizeof(double));
    if (!room) return 1;
    float inverse = 1.0f / temperature;
#pragma omp parallel for schedule(static) if (N * C > MANY)
    for (int64_t n = 0; n < N; n++) {
        const float *row = logits + n * C;
        double *sums = room + n * blocks, total = 0, reached = 0;
        float most = largest(row, C);
        for (int64_t b = 0; b < blocks; b++) {
            float sum = 0;
            int64_t end = (b + 1) * BLOCK < C ? (b + 1) * BLOCK : C;
            for (int64_t c = b * BLOCK; c < end; c++) sum += exponential((row[c] - most) * inverse);
            total += sums[b] = sum;
        }
        double target = noise[n] * total;
        int64_t b = 0, c, last = -1;
        while (b + 1 < blocks && reached + sums[b] <= target) reached += sums[b++];
        for (c = b * BLOCK; c < C; c++) { /* on into the next block where this one's parts add up to less than its sum */
            double p = exponential((row[c] - most) * inverse);
            if (p > 0) last = c;
            if ((reached += p) > target) break;
        }
        /* Where rounding leaves the target above all, the last that can be. */
        for (; c == C && last < 0 && b > 0; b--)
            for (int64_t d = (b - 1) * BLOCK; d < b * BLOCK; d++) last = row[d] - most > -87.0f * temperature ? d : last;
        chosen[n] = c < C ? c : last;
    }
    free(room);
    return 0;
}
