/* model_bin.c: reading a `.bin` model of any known version. Layouts: docs/model_file.md. */
#include "model.h"

#include "bytes.h"
#include "error.h"
#include "reader.h"

#include <math.h>

/* ---- header ----------------------------------------------------------------------------------------------
 */

static bool version_is(const nano_config *c, uint32_t major, uint32_t minor) {
    return c->version_major == major && c->version_minor == minor;
}

static nano_status read_quant(nano_config *c, uint32_t value) {
    bool first = version_is(c, 2024, 10);
    if (value == 0 && !version_is(c, 2025, 8)) {
        c->quant = NANO_F32;
    } else if (first ? value == 800
                     : value == 0x80 || value == 10 || (value == 800 && version_is(c, 2025, 8))) {
        c->quant = NANO_Q80;
    } else if (value == 0x42 && version_is(c, 2026, 1)) {
        c->quant = NANO_Q4K;
    } else {
        return nano_fail(NANO_ERR_FORMAT,
                         "header: quantisation is %u, unknown in version %u.%u; known: 0 (fp32), %s", value,
                         c->version_major, c->version_minor,
                         first ? "800 (Q80)" : "128 and 10 (Q80), in 2026.1 66 (Q4K)");
    }
    return NANO_OK;
}

static nano_status read_shape(nano_config *c, const header *h, bool has_head_dim) {
    c->block_size = h->word[6];
    c->vocab_size = h->word[7];
    c->n_layer = h->word[8];
    c->n_embd = h->word[9];
    c->n_head = h->word[10];
    c->n_kv_head = h->word[11];
    c->n_hidden = h->word[12];
    nano_status status;
    if ((status = reader_field("block_size", c->block_size, 1, 1 << 24))) return status;
    if ((status = reader_field("vocab_size", c->vocab_size, 1, 1 << 24))) return status;
    if ((status = reader_field("n_layer", c->n_layer, 1, 1 << 12))) return status;
    if ((status = reader_field("n_embd", c->n_embd, 1, 1 << 20))) return status;
    if ((status = reader_field("n_head", c->n_head, 1, c->n_embd))) return status;
    if ((status = reader_field("n_kv_head", c->n_kv_head, 1, c->n_head))) return status;
    if ((status = reader_field("n_hidden", c->n_hidden, 1, 1 << 24))) return status;
    if ((status = reader_field("tied (word 13)", h->word[13], 0, 1))) return status;
    c->tied = h->word[13];
    if (c->n_head % c->n_kv_head)
        return nano_fail(NANO_ERR_FORMAT, "header: n_head %u is no multiple of n_kv_head %u", c->n_head,
                         c->n_kv_head);

    if (c->arch == NANO_ARCH_QWEN3) {
        c->head_dim = h->word[14];
        if ((status = reader_field("head_dim", c->head_dim, 2, 1 << 14))) return status;
        if ((uint64_t)c->n_head * c->head_dim > 1 << 24)
            return nano_fail(NANO_ERR_FORMAT, "header: n_head %u times head_dim %u is above 16777216",
                             c->n_head, c->head_dim);
    } else {
        if (c->n_embd % c->n_head)
            return nano_fail(NANO_ERR_FORMAT, "header: n_embd %u is no multiple of n_head %u", c->n_embd,
                             c->n_head);
        c->head_dim = c->n_embd / c->n_head;
        if (has_head_dim && h->word[14] != c->head_dim)
            return nano_fail(NANO_ERR_FORMAT,
                             "header: head_dim is %u; with n_embd %u and n_head %u it must be %u",
                             h->word[14], c->n_embd, c->n_head, c->head_dim);
    }
    if (c->head_dim % 2)
        return nano_fail(NANO_ERR_FORMAT, "header: head_dim is %u; it must be even (RoPE turns pairs)",
                         c->head_dim);
    return NANO_OK;
}

static nano_status read_config(nano_config *c, const header *h) {
    c->version_major = h->word[2];
    c->version_minor = h->word[3];
    bool first = version_is(c, 2024, 10), mid = version_is(c, 2025, 8);
    if (!first && !mid && !version_is(c, 2025, 12) && !version_is(c, 2026, 1))
        return nano_fail(NANO_ERR_FORMAT,
                         "file version %u.%u is unknown; known: 2024.10, 2025.8, 2025.12, 2026.1",
                         c->version_major, c->version_minor);
    uint32_t type = h->word[4];
    if (type == TYPE_LORA)
        return nano_fail(NANO_ERR_FORMAT,
                         "this is a LoRA adapter (type 10), not a model: give it with a model");
    if (type != TYPE_NANO && (first || (type != TYPE_QWEN2 && type != TYPE_QWEN3)))
        return nano_fail(NANO_ERR_FORMAT, "header: model type %u is unknown in version %u.%u; known: %s",
                         type, c->version_major, c->version_minor,
                         first ? "0 (Nano)" : "0 (Nano), 2 (Qwen2), 3 (Qwen3), 10 (LoRA)");
    c->arch = type == TYPE_QWEN3 ? NANO_ARCH_QWEN3 : type == TYPE_QWEN2 ? NANO_ARCH_QWEN2 : NANO_ARCH_NANO;
    c->norm_eps = 1e-5f;
    c->use_rope = true;
    c->qkv_bias = c->arch == NANO_ARCH_QWEN2;
    c->qk_norm = c->arch == NANO_ARCH_QWEN3;
    c->rope_halves = c->arch == NANO_ARCH_QWEN3;
    c->rope_theta = c->arch == NANO_ARCH_NANO ? 1e4f : 1e6f;

    /* head_dim came in with Qwen3 and pushed the quantisation words one further */
    bool has_head_dim = !first && !(mid && c->arch != NANO_ARCH_QWEN3);
    unsigned quant_word = has_head_dim ? 15 : 14;
    nano_status status = read_shape(c, h, has_head_dim);
    if (!status) status = read_quant(c, h->word[quant_word]);
    if (c->quant == NANO_Q80) c->header_group_size = h->word[quant_word + 1];
    return status;
}

/* ---- parameters ------------------------------------------------------------------------------------------
 */

/* Each matrix kind of a layer, in file order: w1 to w3 lie together after the attention's. */
enum { N_LAYER_MATRICES = 7 };

typedef struct {
    size_t place; /* in `layer` */
    uint32_t rows, cols;
    const char *name;
} matrix_kind;

static void list_kinds(const nano_config *c, matrix_kind kinds[N_LAYER_MATRICES]) {
    uint32_t e = c->n_embd, q = c->n_head * c->head_dim, kv = c->n_kv_head * c->head_dim, f = c->n_hidden;
    const matrix_kind all[N_LAYER_MATRICES] = {
        {offsetof(layer, wq), q, e, "wq"},  {offsetof(layer, wk), kv, e, "wk"},
        {offsetof(layer, wv), kv, e, "wv"}, {offsetof(layer, wo), e, q, "wo"},
        {offsetof(layer, w1), f, e, "w1"},  {offsetof(layer, w2), e, f, "w2"},
        {offsetof(layer, w3), f, e, "w3"},
    };
    memcpy(kinds, all, sizeof all);
}

static matrix *matrix_at(layer *l, size_t place) {
    return (matrix *)(void *)((char *)l + place);
}

static const float **floats_at(layer *l, size_t place) {
    return (const float **)(void *)((char *)l + place);
}

/* Old headers lie about Q80's group size: which one makes the file as long as it is? */
static nano_status find_group_size(nano_config *c, uint64_t param_bytes, const matrix_kind *kinds) {
    uint64_t e = c->n_embd, half = (uint64_t)c->block_size * (c->head_dim / 2);
    uint64_t per_layer = 0;
    for (unsigned i = 0; i < N_LAYER_MATRICES; i++)
        per_layer = plus(per_layer, times(kinds[i].rows, kinds[i].cols));
    uint64_t n_q = plus(times(c->n_layer, per_layer), times(times(c->vocab_size, e), c->tied ? 1 : 2));
    uint64_t n_float = plus((2 * (uint64_t)c->n_layer + 1) * e, 2 * half);
    uint64_t kv = (uint64_t)c->n_kv_head * c->head_dim, q = (uint64_t)c->n_head * c->head_dim;
    if (c->arch == NANO_ARCH_QWEN2) n_float = plus(n_float, times(c->n_layer, q + 2 * kv));
    if (c->arch == NANO_ARCH_QWEN3) n_float = plus(n_float, times(c->n_layer, 2 * (uint64_t)c->head_dim));

    uint64_t without_rope =
        c->arch == NANO_ARCH_QWEN3 ? 8 * half : 0; /* Qwen3 files may leave the tables out */
    for (uint32_t i = 0; i <= 9; i++) {
        uint32_t gs = i ? 512u >> i : c->header_group_size; /* as the header says, then 256, 128, ..., 1 */
        if (!gs || n_q % gs) continue;
        uint64_t asked = plus(plus(times(n_float, 4), n_q), times(n_q / gs, 4));
        if (asked == param_bytes || (without_rope && asked - without_rope == param_bytes)) c->group_size = gs;
        if (c->group_size) break;
    }
    if (!c->group_size)
        return nano_fail(
            NANO_ERR_FORMAT,
            "the file is damaged or cut: with no Q80 group size from 1 to 256 (the header says %u) do "
            "its parameters take the %llu bytes that are there",
            c->header_group_size, (unsigned long long)param_bytes);
    for (unsigned i = 0; i < N_LAYER_MATRICES; i++)
        if (kinds[i].cols % c->group_size)
            return nano_fail(NANO_ERR_FORMAT, "Q80 group size %u does not divide the rows of %s, %u long",
                             c->group_size, kinds[i].name, kinds[i].cols);
    return NANO_OK;
}

enum { Q4K_HEAD = 44, Q4K_CODE = 0x42 };

/* The head that each Q4K tensor carries: must say what the header already implies. */
static nano_status check_q4k_head(const uint8_t *head, uint32_t n_layers, const matrix *m, const char *name) {
    uint64_t per_row = (m->cols + (uint64_t)Q4K_LENGTH - 1) / Q4K_LENGTH;
    uint64_t n_blocks = times(times(n_layers ? n_layers : 1, m->rows), per_row);
    uint32_t dims = n_layers ? 3 : 2, at = n_layers ? 1 : 0;
    const uint8_t *shape = head + 16;
    bool fits = load_u32(head + 8) == Q4K_CODE && load_u32(head + 12) == dims &&
                (!n_layers || load_u32(shape) == n_layers) && load_u32(shape + 4 * at) == m->rows &&
                load_u32(shape + 4 * at + 4) == m->cols && load_u32(head + 40) == n_blocks &&
                load_u64(head) == plus(Q4K_HEAD, times(Q4K_BLOCK, n_blocks));
    if (fits) return NANO_OK;
    return nano_fail(NANO_ERR_FORMAT,
                     "Q4K tensor %s: its own head does not agree with the file's (%u rows of %u)", name,
                     m->rows, m->cols);
}

/* The next tensor of m's shape into m. A Q4K tensor holds all layers and has one head, before the first of
 * them: `n_layers` is given there (0 for a matrix that is no layer's), and `first` is true. */
static nano_status take_matrix(reader *r, const nano_config *c, matrix *m, uint32_t n_layers, bool first,
                               const char *name) {
    uint64_t count = (uint64_t)m->rows * m->cols;
    m->quant = c->quant;
    switch (m->quant) {
    case NANO_F32:
        return reader_matrix(r, m, name);
    case NANO_Q80:
        m->group = c->group_size;
        m->q = (const int8_t *)reader_take(r, count, 1, name);
        if (!m->q) return r->status;
        return (m->scales = reader_take(r, count / m->group, sizeof(float), name)) ? NANO_OK : r->status;
    case NANO_Q4K:
        if (first) {
            const uint8_t *head = reader_take(r, Q4K_HEAD, 1, name);
            nano_status status = head ? check_q4k_head(head, n_layers, m, name) : r->status;
            if (status) return status;
        }
        m->blocks = reader_take(r, times(m->rows, (m->cols + Q4K_LENGTH - 1) / Q4K_LENGTH), Q4K_BLOCK, name);
        return m->blocks ? NANO_OK : r->status;
    default:
        return NANO_ERR_FORMAT; /* read_quant() gives no other */
    }
}

static nano_status take_layer_matrices(reader *r, nano_model *m, const matrix_kind *kind) {
    for (uint32_t l = 0; l < m->config.n_layer; l++) {
        matrix *w = matrix_at(&m->layers[l], kind->place);
        *w = (matrix){.rows = kind->rows, .cols = kind->cols};
        nano_status status = take_matrix(r, &m->config, w, m->config.n_layer, l == 0, kind->name);
        if (status) return status;
        m->config.n_params += (uint64_t)kind->rows * kind->cols;
    }
    return NANO_OK;
}

/* A float array of every layer: norms and biases. */
static nano_status take_layer_floats(reader *r, nano_model *m, size_t place, uint32_t n, const char *name) {
    for (uint32_t l = 0; l < m->config.n_layer; l++) {
        const float *values = reader_floats(r, n, name);
        if (!values) return r->status;
        *floats_at(&m->layers[l], place) = values;
        m->config.n_params += n;
    }
    return NANO_OK;
}

static nano_status take_final_norm(reader *r, nano_model *m) {
    m->final_norm = reader_floats(r, m->config.n_embd, "final_norm");
    m->config.n_params += m->config.n_embd;
    return m->final_norm ? NANO_OK : r->status;
}

static nano_status take_embedding(reader *r, nano_model *m, matrix *w, const char *name) {
    *w = (matrix){.rows = m->config.vocab_size, .cols = m->config.n_embd};
    m->config.n_params += (uint64_t)w->rows * w->cols;
    return take_matrix(r, &m->config, w, 0, true, name);
}

static nano_status check_finite(const float *values, uint64_t n, const char *name) {
    for (uint64_t i = 0; i < n; i++)
        if (!isfinite(values[i]))
            return nano_fail(NANO_ERR_FORMAT, "%s[%llu] is not a finite number: the file is damaged", name,
                             (unsigned long long)i);
    return NANO_OK;
}

static uint64_t output_bytes(const nano_config *c) {
    uint64_t count = (uint64_t)c->vocab_size * c->n_embd;
    switch (c->quant) {
    case NANO_F32:
        return 4 * count;
    case NANO_Q80:
        return count + 4 * (count / c->group_size);
    default:
        break;
    }
    return Q4K_HEAD + (uint64_t)c->vocab_size * ((c->n_embd + Q4K_LENGTH - 1) / Q4K_LENGTH) * Q4K_BLOCK;
}

static nano_status take_rope(reader *r, nano_model *m) {
    const nano_config *c = &m->config;
    uint64_t n = (uint64_t)c->block_size * (c->head_dim / 2), left = m->storage.size - r->at;
    if (c->arch ==
        NANO_ARCH_QWEN3) { /* its programs compute them, so the file's may be anything, or not there */
        if (left == (c->tied ? 0 : output_bytes(c))) return NANO_OK;
        return reader_take(r, n, 2 * sizeof(float), "cos, sin") ? NANO_OK : r->status;
    }
    m->rope_cos = reader_floats(r, n, "cos");
    if (m->rope_cos) m->rope_sin = reader_floats(r, n, "sin");
    if (!m->rope_sin) return r->status;
    nano_status status = check_finite(m->rope_cos, n, "cos");
    return status ? status : check_finite(m->rope_sin, n, "sin");
}

static nano_status take_all_kinds(reader *r, nano_model *m, const matrix_kind *kinds, unsigned from,
                                  unsigned to) {
    for (unsigned i = from; i < to; i++) TRY(take_layer_matrices(r, m, &kinds[i]));
    return NANO_OK;
}

/* The order of 2024.10's fp32 files. */
static nano_status read_order_a(reader *r, nano_model *m, const matrix_kind *kinds) {
    TRY(take_embedding(r, m, &m->embedding, "tok_emb"));
    TRY(take_layer_floats(r, m, offsetof(layer, attn_norm), m->config.n_embd, "attn_norm"));
    TRY(take_all_kinds(r, m, kinds, 0, 4));
    TRY(take_layer_floats(r, m, offsetof(layer, ffn_norm), m->config.n_embd, "ffn_norm"));
    TRY(take_all_kinds(r, m, kinds, 4, N_LAYER_MATRICES));
    TRY(take_final_norm(r, m));
    TRY(take_rope(r, m));
    return m->config.tied ? NANO_OK : take_embedding(r, m, &m->output, "output");
}

/* The order of all others; 2024.10's Q80 files have an untied output before the RoPE tables. */
static nano_status read_order_b(reader *r, nano_model *m, const matrix_kind *kinds) {
    const nano_config *c = &m->config;
    uint32_t q = c->n_head * c->head_dim, kv = c->n_kv_head * c->head_dim;
    bool output_first = version_is(c, 2024, 10);
    TRY(take_layer_floats(r, m, offsetof(layer, attn_norm), c->n_embd, "attn_norm"));
    TRY(take_layer_floats(r, m, offsetof(layer, ffn_norm), c->n_embd, "ffn_norm"));
    TRY(take_final_norm(r, m));
    TRY(take_embedding(r, m, &m->embedding, "tok_emb"));
    TRY(take_all_kinds(r, m, kinds, 0, N_LAYER_MATRICES));
    if (!c->tied && output_first) TRY(take_embedding(r, m, &m->output, "output"));
    if (c->arch == NANO_ARCH_QWEN2) {
        TRY(take_layer_floats(r, m, offsetof(layer, bq), q, "bq"));
        TRY(take_layer_floats(r, m, offsetof(layer, bk), kv, "bk"));
        TRY(take_layer_floats(r, m, offsetof(layer, bv), kv, "bv"));
    }
    if (c->arch == NANO_ARCH_QWEN3) {
        TRY(take_layer_floats(r, m, offsetof(layer, q_norm), c->head_dim, "q_norm"));
        TRY(take_layer_floats(r, m, offsetof(layer, k_norm), c->head_dim, "k_norm"));
    }
    TRY(take_rope(r, m));
    if (!c->tied && !output_first) TRY(take_embedding(r, m, &m->output, "output"));
    return NANO_OK;
}

/* ---- the whole file --------------------------------------------------------------------------------------
 */

static nano_status read_vocab(nano_model *m, reader *r) {
    nano_config *c = &m->config;
    const uint8_t *section = reader_take(r, 2, 4, "the vocabulary");
    if (!section) return r->status;
    uint32_t field_bytes = load_u32(section);
    if (field_bytes < 8)
        return nano_fail(NANO_ERR_FORMAT, "vocabulary: field_bytes is %u; it must be at least 8",
                         field_bytes);
    if (!reader_take(r, field_bytes - 8, 1, "the vocabulary")) return r->status;
    vocab *v = &m->vocab;
    TRY((c->arch == NANO_ARCH_NANO ? vocab_read_trie : vocab_read_bpe)(v, section, field_bytes,
                                                                       c->vocab_size));
    c->n_special = v->n_special;
    c->max_token = v->max_token;
    c->byte_tokens = v->byte_tokens;
    return NANO_OK;
}

/* The tensors of a file of this kind, each layer's matrices counted one by one. */
static void count_tensors(nano_config *c) {
    uint32_t per_layer = 2 + (c->qkv_bias ? 3 : 0) + (c->qk_norm ? 2 : 0);
    c->quant_tensors[NANO_F32] = per_layer * c->n_layer + 1;
    c->quant_tensors[c->quant] += N_LAYER_MATRICES * c->n_layer + (c->tied ? 1 : 2);
}

nano_status model_read_bin(nano_model *m) {
    nano_config *c = &m->config;
    header h;
    matrix_kind kinds[N_LAYER_MATRICES];
    reader r = {.storage = &m->storage, .at = HEADER_BYTES};
    TRY(reader_header(&h, m->storage.bytes, m->storage.size));
    TRY(read_config(c, &h));
    /* No format takes less than half a byte for a weight: do not set memory aside for what cannot be there.
     */
    if (times(c->vocab_size, c->n_embd) / 2 > c->file_bytes)
        return nano_fail(NANO_ERR_FORMAT,
                         "header: vocab_size %u times n_embd %u weights cannot be in a file of %llu bytes",
                         c->vocab_size, c->n_embd, (unsigned long long)c->file_bytes);
    list_kinds(c, kinds);
    TRY(read_vocab(m, &r));
    if (c->quant == NANO_Q80) TRY(find_group_size(c, m->storage.size - r.at, kinds));

    m->layers = plat_alloc(c->n_layer * sizeof *m->layers);
    if (!m->layers) return nano_fail(NANO_ERR_MEMORY, "out of memory for %u layers", c->n_layer);
    bool order_a = version_is(c, 2024, 10) && c->quant == NANO_F32;
    TRY((order_a ? read_order_a : read_order_b)(&r, m, kinds));
    if (c->tied) m->output = m->embedding;
    count_tensors(c);
    if (r.at != m->storage.size)
        return nano_fail(NANO_ERR_FORMAT, "the file has %llu bytes more than its header asks for",
                         (unsigned long long)(m->storage.size - r.at));
    return NANO_OK;
}
