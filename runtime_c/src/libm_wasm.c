/* libm_wasm.c: what wasm/math.h declares. Arguments are reduced with constants cut into parts, so that the
 * products of the first ones are exact; what is left goes into the series of Taylor, in double precision.
 * Errors stay below 5e-16 for exp(), log(), and sin(), cos() up to a million, and 1e-14 for pow():
 * browser/test/platform.test.js. */
#include <math.h>
#include <stdint.h>
#include <string.h>

static double power_of_two(int n) { /* -1022 <= n <= 1023 */
    uint64_t bits = (uint64_t)(n + 1023) << 52;
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* e^x = 2^n e^r, |r| <= ln(2) / 2. 2^n is a product of two, as results may be subnormal. */
double exp(double x) {
    if (isnan(x)) return x;
    if (x > 710) return (double)INFINITY;
    if (x < -750) return 0;
    double n = __builtin_rint(x * 0x1.71547652b82fep+0);
    double r = (x - n * 0x1.62e42fefp-1) - n * 0x1.473de6af278edp-34; /* ln 2 in two parts */
    double sum = 1.0 / 6227020800;                                    /* 1 / 13! */
    static const double terms[] = {
        1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040,
        1.0 / 720,       1.0 / 120,      1.0 / 24,      1.0 / 6,      0.5};
    for (size_t i = 0; i < sizeof terms / sizeof *terms; i++) sum = sum * r + terms[i];
    sum = 1 + (r + r * r * sum);
    int whole = (int)n, half = whole / 2;
    return sum * power_of_two(half) * power_of_two(whole - half);
}

float expf(float x) {
    return (float)exp((double)x);
}

/* log(2^e m) = e ln 2 + 2 (s + s^3 / 3 + s^5 / 5 + ...), s = (m - 1) / (m + 1), m from sqrt(1/2) to sqrt(2)
 */
double log(double x) {
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    int e = (int)(bits >> 52) - 1023;
    double m = x * power_of_two(-e);
    if (m > 0x1.6a09e667f3bcdp+0) m *= 0.5, e++;
    double s = (m - 1) / (m + 1), z = s * s, sum = 0;
    for (int i = 23; i >= 3; i -= 2) sum = sum * z + 1.0 / i;
    sum = 2 * s + 2 * s * z * sum;
    return e * 0x1.62e42fefp-1 + (e * 0x1.473de6af278edp-34 + sum);
}

double pow(double x, double y) {
    return exp(y * log(x));
}

/* x = n pi/2 + r, |r| <= pi / 4 */
static double reduce(double x, int *n) {
    double whole = __builtin_rint(x * 0x1.45f306dc9c883p-1);
    *n = (int)whole;
    return ((x - whole * 0x1.921fb544p+0) - whole * 0x1.0b4611a6p-34) - whole * 0x1.3198a2e037073p-69;
}

static double sine(double r) {
    static const double terms[] = {1.0 / 6227020800, -1.0 / 39916800, 1.0 / 362880,
                                   -1.0 / 5040,      1.0 / 120,       -1.0 / 6};
    double z = r * r, sum = -1.0 / 1307674368000; /* 1 / 15! */
    for (size_t i = 0; i < sizeof terms / sizeof *terms; i++) sum = sum * z + terms[i];
    return r + r * z * sum;
}

static double cosine(double r) {
    static const double terms[] = {-1.0 / 87178291200, 1.0 / 479001600, -1.0 / 3628800,
                                   1.0 / 40320,        -1.0 / 720,      1.0 / 24};
    double z = r * r, sum = 1.0 / 20922789888000; /* 1 / 16! */
    for (size_t i = 0; i < sizeof terms / sizeof *terms; i++) sum = sum * z + terms[i];
    return 1 - (0.5 * z - z * z * sum);
}

/* sin(x + quarter pi/2) */
static double turned(double x, int quarter) {
    int n;
    double r = reduce(x, &n);
    n = (n + quarter) & 3;
    double value = n & 1 ? cosine(r) : sine(r);
    return n & 2 ? -value : value;
}

double sin(double x) {
    return turned(x, 0);
}

double cos(double x) {
    return turned(x, 1);
}
