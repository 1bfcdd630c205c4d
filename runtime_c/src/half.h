/* half.h: IEEE binary16 and bfloat16 as floats, and back. */
#ifndef NANO_HALF_H
#define NANO_HALF_H

#include <stdint.h>
#include <string.h>

static inline float from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint32_t to_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* The exponent's bias is 15, not 127: shift the bits into place and scale by 2^112, which also makes normal
 * numbers of the subnormal ones. Infinities and NaNs need their exponent filled up. */
static inline float half_to_float(uint16_t half) {
    uint32_t h = half, magnitude = h & 0x7FFF;
    uint32_t bits = to_bits(from_bits(magnitude << 13) * 0x1p112f);
    return from_bits(bits | (magnitude >= 0x7C00 ? 0x7F800000u : 0) | (h & 0x8000) << 16);
}

/* To the nearest, ties to even, as the machines' own instructions do; what is too big becomes infinity. */
static inline uint16_t half_from_float(float value) {
    uint32_t bits = to_bits(value), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7FFFFFFF;
    if (magnitude > 0x7F800000) return (uint16_t)(sign | 0x7E00 | (magnitude >> 13 & 0x1FF));
    if (magnitude >= 0x477FF000) return (uint16_t)(sign | 0x7C00); /* 65520 and above */
    if (magnitude <
        0x38800000) /* below 2^-14: adding 0.5 leaves the number of steps of 2^-24 in the low bits */
        return (uint16_t)(sign | (to_bits(from_bits(magnitude) + 0.5f) - 0x3F000000));
    return (uint16_t)(sign | (magnitude - 0x38000000 + 0xFFF + (magnitude >> 13 & 1)) >> 13);
}

static inline uint16_t load_u16(const uint8_t *bytes) {
    return (uint16_t)(bytes[0] | bytes[1] << 8);
}

static inline float load_half(const uint8_t *bytes) {
    return half_to_float(load_u16(bytes));
}

static inline void store_half(uint8_t *bytes, float value) {
    uint16_t half = half_from_float(value);
    memcpy(bytes, &half, sizeof half);
}

/* To a half and back, where that is a normal number; others stay as they are, rather than lose what they
 * mean. */
static inline float rounded_to_half(float value) {
    uint32_t magnitude = to_bits(value) & 0x7FFFFFFF;
    return magnitude < 0x38800000 || magnitude >= 0x477FF000 ? value : half_to_float(half_from_float(value));
}

/* What numbers of at most `top` are multiplied with to become 8-bit integers. So small a top that this were
 * no number, zero, and what is no number itself, give 0. */
static inline float bytes_per_unit(float top) {
    return top >= 1e-36f ? 127.0f / top : 0;
}

#endif
