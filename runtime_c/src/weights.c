/* weights.c: GGUF's weight types as floats. In all formulas products and sums are rounded one by one, in the
 * order written: "exact" means these floats. Layouts as ggml defines them; halves are IEEE binary16. */
#include "weights.h"

#include "bytes.h"
#include "half.h"

static void read_f32(float *restrict out, const uint8_t *restrict b, size_t n) {
    memcpy(out, b, n * sizeof *out);
}

static void read_f16(float *restrict out, const uint8_t *restrict b, size_t n) {
    for (size_t i = 0; i < n; i++) out[i] = load_half(b + 2 * i);
}

static void read_bf16(float *restrict out, const uint8_t *restrict b, size_t n) {
    for (size_t i = 0; i < n; i++) out[i] = from_bits((uint32_t)load_u16(b + 2 * i) << 16);
}

/* ---- blocks of 32 ----------------------------------------------------------------------------------------
 */

enum { B32 = 32, Q8_0_BYTES = 34, Q4_0_BYTES = 18, Q4_1_BYTES = 20, Q5_0_BYTES = 22, Q5_1_BYTES = 24 };

/* half d, 32 x i8 q: d q */
static void read_q8_0(float *restrict out, const uint8_t *restrict b, size_t n) {
    for (; n--; b += Q8_0_BYTES, out += B32) {
        float d = load_half(b);
        for (size_t i = 0; i < B32; i++) out[i] = d * (float)(int8_t)b[2 + i];
    }
}

/* half d, 16 bytes: weight i is the low half of byte i, weight 16 + i the high one: d (q - 8) */
static void read_q4_0(float *restrict out, const uint8_t *restrict b, size_t n) {
    for (; n--; b += Q4_0_BYTES, out += B32) {
        float d = load_half(b);
        for (size_t i = 0; i < 16; i++) {
            out[i] = d * (float)((b[2 + i] & 15) - 8);
            out[16 + i] = d * (float)((b[2 + i] >> 4) - 8);
        }
    }
}

/* half d, half m, 16 bytes as above: d q + m */
static void read_q4_1(float *restrict out, const uint8_t *restrict b, size_t n) {
    for (; n--; b += Q4_1_BYTES, out += B32) {
        float d = load_half(b), m = load_half(b + 2);
        for (size_t i = 0; i < 16; i++) {
            out[i] = d * (float)(b[4 + i] & 15) + m;
            out[16 + i] = d * (float)(b[4 + i] >> 4) + m;
        }
    }
}

/* half d, u32 of fifth bits (weight i's is bit i), 16 bytes as above: d (q - 16) */
static void read_q5_0(float *restrict out, const uint8_t *restrict b, size_t n) {
    for (; n--; b += Q5_0_BYTES, out += B32) {
        float d = load_half(b);
        uint32_t fifth = load_u32(b + 2);
        for (size_t i = 0; i < 16; i++) {
            int low = (int)((b[6 + i] & 15u) | (fifth >> i & 1) << 4);
            int high = (int)((uint32_t)(b[6 + i] >> 4) | (fifth >> (16 + i) & 1) << 4);
            out[i] = d * (float)(low - 16);
            out[16 + i] = d * (float)(high - 16);
        }
    }
}

/* half d, half m, u32 of fifth bits, 16 bytes: d q + m */
static void read_q5_1(float *restrict out, const uint8_t *restrict b, size_t n) {
    for (; n--; b += Q5_1_BYTES, out += B32) {
        float d = load_half(b), m = load_half(b + 2);
        uint32_t fifth = load_u32(b + 4);
        for (size_t i = 0; i < 16; i++) {
            out[i] = d * (float)((b[8 + i] & 15u) | (fifth >> i & 1) << 4) + m;
            out[16 + i] = d * (float)((uint32_t)(b[8 + i] >> 4) | (fifth >> (16 + i) & 1) << 4) + m;
        }
    }
}

/* ---- blocks of 256 ---------------------------------------------------------------------------------------
 */

enum { B256 = 256, Q4_K_BYTES = 144, Q5_K_BYTES = 176, Q6_K_BYTES = 210 };

/* The 6-bit scale and offset of group g of 8, packed in 12 bytes. (Nano's Q4K packs them in the same bytes in
 * another order.) */
static void unpack_scale(const uint8_t *s, size_t g, unsigned *scale, unsigned *offset) {
    if (g < 4) {
        *scale = s[g] & 63u;
        *offset = s[4 + g] & 63u;
    } else {
        *scale = (s[4 + g] & 15u) | (unsigned)(s[g - 4] >> 6) << 4;
        *offset = (unsigned)(s[4 + g] >> 4) | (unsigned)(s[g] >> 6) << 4;
    }
}

/* half d, half m, 12 bytes of scales, [Q5_K: 32 bytes of fifth bits,] 128 bytes of halves. Groups 2c and 2c +
 * 1 are the low and high halves of bytes 32c to 32c + 31; their fifth bits are bits 2c and 2c + 1 of the 32:
 * (d scale) q - (m offset) */
static void read_k_group(const uint8_t *restrict b, const uint8_t *restrict q, size_t g,
                         uint8_t *restrict out, float *scale, float *offset) {
    unsigned s, o, shift = g % 2 ? 4 : 0;
    unpack_scale(b + 4, g, &s, &o);
    *scale = load_half(b) * (float)s;
    *offset = -(load_half(b + 2) * (float)o);
    for (size_t i = 0; i < 32; i++) out[i] = q[g / 2 * 32 + i] >> shift & 15u;
}

static void read_k_block(float *restrict out, const uint8_t *restrict b, const uint8_t *restrict fifth,
                         const uint8_t *restrict q) {
    for (size_t g = 0; g < 8; g++) {
        uint8_t value[32];
        float scale, offset;
        read_k_group(b, q, g, value, &scale, &offset);
        for (size_t i = 0; fifth && i < 32; i++) value[i] |= (uint8_t)((fifth[i] >> g & 1u) << 4);
        for (size_t i = 0; i < 32; i++) out[g * 32 + i] = scale * (float)value[i] + offset;
    }
}

void weight_q4_k_group(const uint8_t *block, size_t g, uint8_t *q, float *scale, float *offset) {
    read_k_group(block, block + 16, g, q, scale, offset);
}

static void read_q4_k(float *restrict out, const uint8_t *restrict b, size_t n) {
    for (; n--; b += Q4_K_BYTES, out += B256) read_k_block(out, b, NULL, b + 16);
}

static void read_q5_k(float *restrict out, const uint8_t *restrict b, size_t n) {
    for (; n--; b += Q5_K_BYTES, out += B256) read_k_block(out, b, b + 16, b + 48);
}

/* 128 bytes of low halves, 64 of upper two bits, 16 x i8 scales for groups of 16, half d. Each half of the
 * block has 64 bytes of the first and 32 of the second: weight 32 r + i (r = 0..3) takes its low bits from
 * byte i + 32 (r & 1), the high half of it for r >= 2, and bits 2r and 2r + 1 of byte i: (d scale) (q - 32)
 */
static void read_q6_k(float *restrict out, const uint8_t *restrict b, size_t n) {
    for (; n--; b += Q6_K_BYTES, out += B256) {
        float d = load_half(b + 208);
        for (size_t half = 0; half < 2; half++) {
            const uint8_t *low = b + half * 64, *high = b + 128 + half * 32, *scales = b + 192 + half * 8;
            float *to = out + half * 128;
            for (size_t r = 0; r < 4; r++)
                for (size_t i = 0; i < 32; i++) {
                    unsigned four = low[i + 32 * (r & 1)] >> (r < 2 ? 0 : 4) & 15u;
                    unsigned two = high[i] >> (2 * r) & 3u;
                    float s = d * (float)(int8_t)scales[2 * r + i / 16];
                    to[32 * r + i] = s * (float)((int)(four | two << 4) - 32);
                }
        }
    }
}

/* ---- Nano's Q4K ------------------------------------------------------------------------------------------
 */

/* 12 bytes of no use, float scale of the scales, float of the offsets, 12 bytes of scales and offsets, and
 * from byte 32 on the halves, two neighbours in a byte (docs/model_file.md). */
void weight_q4k_group(const uint8_t *block, size_t g, uint8_t *q, float *scale, float *offset) {
    const uint8_t *sb = block + 20, *halves = block + 32 + 16 * g;
    size_t k = g & 3;
    unsigned s = g < 4 ? sb[k] & 63u : (unsigned)(sb[k] >> 6) << 4 | (sb[8 + k] & 15u);
    unsigned o = g < 4 ? sb[4 + k] & 63u : (unsigned)(sb[4 + k] >> 6) << 4 | (unsigned)(sb[8 + k] >> 4);
    *scale = (float)s * from_bits(load_u32(block + 12));
    *offset = -((float)o * from_bits(load_u32(block + 16)));
    for (size_t i = 0; i < 16; i++) {
        q[2 * i] = halves[i] & 15;
        q[2 * i + 1] = halves[i] >> 4;
    }
}

/* ---- the table -------------------------------------------------------------------------------------------
 */

const weight_type *weight_type_of(nano_quant type) {
    static const weight_type types[NANO_N_QUANTS] = {
        [NANO_F32] = {"F32", 1, 4, read_f32},
        [NANO_Q80] = {"Q80", 0, 0, NULL},
        [NANO_Q4K] = {"Q4K", 0, 0, NULL},
        [NANO_F16] = {"F16", 1, 2, read_f16},
        [NANO_BF16] = {"BF16", 1, 2, read_bf16},
        [NANO_GGUF_Q8_0] = {"Q8_0", B32, Q8_0_BYTES, read_q8_0},
        [NANO_GGUF_Q4_0] = {"Q4_0", B32, Q4_0_BYTES, read_q4_0},
        [NANO_GGUF_Q4_1] = {"Q4_1", B32, Q4_1_BYTES, read_q4_1},
        [NANO_GGUF_Q5_0] = {"Q5_0", B32, Q5_0_BYTES, read_q5_0},
        [NANO_GGUF_Q5_1] = {"Q5_1", B32, Q5_1_BYTES, read_q5_1},
        [NANO_GGUF_Q4_K] = {"Q4_K", B256, Q4_K_BYTES, read_q4_k},
        [NANO_GGUF_Q5_K] = {"Q5_K", B256, Q5_K_BYTES, read_q5_k},
        [NANO_GGUF_Q6_K] = {"Q6_K", B256, Q6_K_BYTES, read_q6_k},
    };
    return &types[type];
}

bool weight_type_from_gguf(uint32_t number, nano_quant *type) {
    static const struct {
        uint8_t number;
        nano_quant type;
    } known[] = {
        {0, NANO_F32},        {1, NANO_F16},        {2, NANO_GGUF_Q4_0}, {3, NANO_GGUF_Q4_1},
        {6, NANO_GGUF_Q5_0},  {7, NANO_GGUF_Q5_1},  {8, NANO_GGUF_Q8_0}, {12, NANO_GGUF_Q4_K},
        {13, NANO_GGUF_Q5_K}, {14, NANO_GGUF_Q6_K}, {30, NANO_BF16},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (known[i].number == number) {
            *type = known[i].type;
            return true;
        }
    return false;
}

const char *weight_types_of_gguf(void) {
    return "F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K and Q6_K";
}

const char *nano_quant_name(nano_quant type) {
    return (unsigned)type < NANO_N_QUANTS ? weight_type_of(type)->name : "?";
}
