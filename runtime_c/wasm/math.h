/* math.h: the functions of this name that the core uses, for a build without a C library. libm_wasm.c has
 * those that are no instructions of WebAssembly. */
#ifndef NANO_WASM_MATH_H
#define NANO_WASM_MATH_H

#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
#define isnan(x) __builtin_isnan(x)
#define isfinite(x) __builtin_isfinite(x)

static inline float fabsf(float x) {
    return __builtin_fabsf(x);
}

static inline float sqrtf(float x) {
    return __builtin_sqrtf(x);
}

/* To the nearest, ties to even; what does not fit, and what is no number, becomes what a C library may also
 * give. */
static inline long lrintf(float x) {
    return (long)__builtin_rintf(x);
}

double exp(double x);
double log(double x);           /* x a positive, normal number */
double pow(double x, double y); /* x a positive, normal number */
double sin(double x);           /* |x| < 1e6 */
double cos(double x);
float expf(float x);

#endif
