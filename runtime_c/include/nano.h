/* nano.h: run small language models from `.bin` and GGUF files. The one public header of libnano.
 *
 * Three handles: a nano_model is a file's weights and vocabulary (read-only, may be shared by threads); a
 * nano_adapter is a LoRA for such a model; a nano_session is one running text: KV cache, work buffers, worker
 * threads, sampler. A session belongs to one thread at a time and must be closed before its model and
 * adapter.
 *
 * Each call that can fail returns a nano_status; nano_last_error() then says what went wrong and where. The
 * library never prints, never exits, and keeps no global state but that text, which is kept per thread.
 */
#ifndef NANO_H
#define NANO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
/* What is declared here is all that a shared library shows (the rest is compiled with -fvisibility=hidden).
 */
#ifdef __GNUC__
#pragma GCC visibility push(default)
#endif

typedef struct nano_model nano_model;
typedef struct nano_adapter nano_adapter;
typedef struct nano_session nano_session;

typedef enum nano_status {
    NANO_OK = 0,
    NANO_ERR_ARGUMENT, /* the caller's values are out of range */
    NANO_ERR_FILE,     /* the file cannot be opened or read */
    NANO_ERR_FORMAT,   /* the file's content is not what it should be */
    NANO_ERR_MISMATCH, /* adapter and model do not belong together */
    NANO_ERR_CONTEXT,  /* more tokens than the context holds */
    NANO_ERR_MEMORY,   /* out of memory */
    NANO_ERR_SYSTEM,   /* the system refused something else, such as a thread */
} nano_status;

/* What the last failed call of this thread has to say; "" before the first failure. */
const char *nano_last_error(void);

/* ---- model ----------------------------------------------------------------------------------------------
 */

/* Numbers below 10 are `.bin` model types. A GGUF file says llama, qwen2, qwen3, or nano (our own variants).
 */
typedef enum nano_arch {
    NANO_ARCH_NANO = 0,
    NANO_ARCH_QWEN2 = 2,
    NANO_ARCH_QWEN3 = 3,
    NANO_ARCH_LLAMA = 100,
} nano_arch;

/* Types of weights. Q80 and Q4K belong to `.bin` files; GGUF's Q8_0 and Q4_K are other things. */
typedef enum nano_quant {
    NANO_F32 = 0,
    NANO_Q80 = 1,
    NANO_Q4K = 2,
    NANO_F16,
    NANO_BF16,
    NANO_GGUF_Q8_0,
    NANO_GGUF_Q4_0,
    NANO_GGUF_Q4_1,
    NANO_GGUF_Q5_0,
    NANO_GGUF_Q5_1,
    NANO_GGUF_Q4_K,
    NANO_GGUF_Q5_K,
    NANO_GGUF_Q6_K,
    NANO_N_QUANTS, /* how many there are */
} nano_quant;

const char *nano_quant_name(nano_quant type); /* "F32", "Q80", "Q8_0", ... */

typedef enum nano_container { NANO_CONTAINER_BIN, NANO_CONTAINER_GGUF } nano_container;
typedef enum nano_kind { NANO_KIND_MODEL, NANO_KIND_ADAPTER } nano_kind;

typedef struct nano_config {
    uint32_t version_major, version_minor; /* of the file format: 2024.10 to 2026.1; GGUF: 2.0 or 3.0 */
    nano_arch arch;
    nano_quant quant;           /* of the matrices; GGUF: of most weights of the layers' */
    uint32_t group_size;        /* Q80: weights per scale, as found; 0 otherwise */
    uint32_t header_group_size; /* Q80: what the header said (old headers may be wrong) */
    uint32_t block_size;        /* longest context, in tokens */
    uint32_t vocab_size, n_layer, n_embd, n_head, n_kv_head, head_dim, n_hidden;
    bool tied;   /* the output matrix is the embedding */
    bool causal; /* each position sees itself and what is before it; else all positions */
    float norm_eps;
    float rope_theta;
    bool rope_halves;    /* RoPE turns (x[j], x[j + hd/2]); else (x[2j], x[2j+1]) */
    uint64_t n_params;   /* weights, a tied matrix counted once */
    uint64_t file_bytes; /* size of the file */
    uint32_t n_special;  /* special tokens in the vocabulary */
    uint32_t max_token;  /* longest token: code points (Nano) or bytes (all others) */
    bool byte_tokens;    /* all 256 single bytes are tokens: encoding loses nothing */
    nano_container container;
    bool use_rope;    /* else positions are learned */
    bool linear_bias; /* some linear besides q, k, v has a bias */
    bool qkv_bias, qk_norm;
    uint32_t quant_tensors[NANO_N_QUANTS]; /* tensors of each type, in the file */
} nano_config;

/* "nano", "llama", "qwen2", "qwen3": static text. */
const char *nano_arch_name(nano_arch arch);

typedef struct nano_model_params {
    bool non_causal; /* attend to all positions (sequence-to-sequence models): a `.bin` file cannot say so */
    /* Which instructions to use; NULL: the best that this machine has. "avx512", "avxvnni", "avx2", "i8mm",
     * "dotprod", "neon", "scalar" (plain C); or "exact": the reference, slow, which uses the weights as they
     * lie in the file and rounds no activations. All others copy the weights into a layout of their own;
     * where those have 8 bits or less, activations are rounded to 8 bits, in groups of 32, as GGUF's Q8_0. */
    const char *kernels;
    /* nano_model_open_memory(): the bytes may be overwritten, also on failure, and the model may rely on what
     * it made of them. Weights are then packed where they lie, if that takes no more room (Q8_0, Q4_0, Q4_1,
     * F32, F16, BF16; not a matrix that is read a row at a time as well), so that they are not in memory
     * twice. */
    bool overwrite;
} nano_model_params;

nano_model_params nano_model_default_params(void);

/* Is this a model or an adapter? Looks at the header (GGUF: the keys) only. */
nano_status nano_probe_file(const char *path, nano_kind *kind);

/* Either container: the first bytes tell. `params` may be NULL for the defaults. On failure *out is NULL. */
nano_status nano_model_open_file(nano_model **out, const char *path, const nano_model_params *params);
/* The bytes are used in place: they must stay as they are until nano_model_close(). Any alignment will do. */
nano_status nano_model_open_memory(nano_model **out, const void *bytes, size_t size,
                                   const nano_model_params *params);
void nano_model_close(nano_model *model);
const char *nano_model_kernels(const nano_model *model);   /* their name, static text */
uint64_t nano_model_packed_bytes(const nano_model *model); /* what the copy of the weights takes; 0: none */
const nano_config *nano_model_config(const nano_model *model);

/* ---- what else is in a GGUF file ------------------------------------------------------------------------
 */

/* Texts lie in the file: they are not terminated, and may be any bytes. */
typedef enum nano_meta_type {
    NANO_META_UNSIGNED,
    NANO_META_SIGNED,
    NANO_META_NUMBER,
    NANO_META_BOOL,
    NANO_META_TEXT,
    NANO_META_ARRAY
} nano_meta_type;

typedef struct nano_meta {
    const char *key;
    size_t key_length;
    nano_meta_type type;
    uint64_t whole; /* UNSIGNED, BOOL; SIGNED: the bits of an int64_t */
    double number;  /* NUMBER */
    const char *text;
    size_t text_length;
    uint64_t count; /* ARRAY: items */
} nano_meta;

typedef struct nano_tensor {
    const char *name;
    size_t name_length;
    nano_quant type;
    uint32_t n_dims;
    uint64_t dims[4]; /* dims[0] is the length of a row */
    uint64_t offset, n_bytes;
} nano_tensor;

/* The index-th key, item of an array, or tensor, in the file's order; false past the last (a `.bin` file has
 * none). An item's key is its array's; walking through an array of texts costs the square of its length. */
bool nano_model_meta(const nano_model *model, uint32_t index, nano_meta *out);
bool nano_model_meta_item(const nano_model *model, uint32_t index, uint64_t item, nano_meta *out);
bool nano_model_tensor(const nano_model *model, uint32_t index, nano_tensor *out);

/* ---- vocabulary -----------------------------------------------------------------------------------------
 */

/* The bytes of a token and their number: often, but not always, whole UTF-8 characters. NULL if no such id.
 */
const char *nano_token_bytes(const nano_model *model, uint32_t id, size_t *n_bytes);
bool nano_token_is_special(const nano_model *model, uint32_t id);
/* Does this token end a text? (`.bin`: <|padding|> 0 and <|eos|> 3; GGUF: what the file says ends a text, a
 * turn or a message.) */
bool nano_token_is_stop(const nano_model *model, uint32_t id);
/* Does a text begin with a token of its own, and which? nano_tokenize() does not put it there. */
bool nano_token_bos(const nano_model *model, uint32_t *id);

/* Encode `n_bytes` bytes of text, which need not be valid UTF-8. *ids is the caller's to nano_free(). Unless
 * allow_special, "<|eos|>" in the text is seven ordinary characters: pass text from users that way. */
nano_status nano_tokenize(const nano_model *model, const char *text, size_t n_bytes, bool allow_special,
                          uint32_t **ids, size_t *n_ids);
void nano_free(void *pointer);

/* ---- chat -----------------------------------------------------------------------------------------------
 */

/* The form of a conversation, by the file's chat template or, without one, by its special tokens. */
typedef enum nano_chat_family {
    NANO_CHAT_NONE, /* a model that continues text */
    NANO_CHAT_CHATML,
    NANO_CHAT_LLAMA3,
    NANO_CHAT_NANO
} nano_chat_family;

nano_chat_family nano_model_chat_family(const nano_model *model);

/* The tokens of a user's message in the model's form, up to where its answer begins. `first`: it begins a
 * conversation, so the beginning of text and the system prompt (NULL: the template's own, "": none) come
 * before it; else what closes the answer before comes first: leave an answer's stop token out. Evaluate the
 * tokens, then sample until a stop token. Nothing in the user's text becomes a special token. *ids is the
 * caller's to nano_free(). */
nano_status nano_chat_turn(const nano_model *model, const char *system, const char *text, size_t n_bytes,
                           bool first, uint32_t **ids, size_t *n_ids);

/* An answer that is followed by another message may have to change: templates of models that think aloud
 * (Qwen3's) leave out of earlier answers what comes before </think>. `conversation`: all tokens so far. *ids
 * NULL: it stays as it is; else those from *from on are to be replaced by these. The caller's to nano_free().
 */
nano_status nano_chat_settle(const nano_model *model, const uint32_t *conversation, size_t n, size_t *from,
                             uint32_t **ids, size_t *n_ids);

/* ---- adapter (LoRA) -------------------------------------------------------------------------------------
 */

/* From a `.bin` (q, k, v, o) or a GGUF file of general.type "adapter" (any of the seven linears of a layer).
 * A GGUF adapter of the llama architecture has the rows of q and k in the order of GGUF's models, like its
 * base. */
typedef struct nano_adapter_config {
    uint32_t version_major, version_minor;
    uint32_t rank; /* GGUF: the highest of its tensors */
    float alpha;   /* a pair's product is scaled by alpha / its rank */
    uint32_t n_layer, n_embd, n_head, n_kv_head, n_hidden; /* of its model; 0: the file does not say */
    uint64_t n_params, file_bytes;
    nano_container container;
    nano_arch arch; /* of its model */
} nano_adapter_config;

nano_status nano_adapter_open_file(nano_adapter **out, const char *path);
nano_status nano_adapter_open_memory(nano_adapter **out, const void *bytes, size_t size);
void nano_adapter_close(nano_adapter *adapter);
const nano_adapter_config *nano_adapter_get_config(const nano_adapter *adapter);

/* ---- session --------------------------------------------------------------------------------------------
 */

typedef enum nano_cache {
    NANO_CACHE_AUTO, /* floats for float32 weights and the exact kernels, else halves */
    NANO_CACHE_F16,
    NANO_CACHE_F32
} nano_cache;

/* May nano_session_generate() guess tokens from what was said before, and compute several at once? The text
 * is the same in each case. */
typedef enum nano_draft {
    NANO_DRAFT_AUTO, /* where it pays, by what guesses and batches were worth so far */
    NANO_DRAFT_OFF,
    NANO_DRAFT_ALWAYS /* wherever there is a guess: to measure, and to test */
} nano_draft;

typedef struct nano_session_params {
    uint32_t context; /* room for tokens; 0: as many as the model allows */
    /* 0: one for each fast core that this process may use, within its cgroup. No more than these: they, and
     * the thread that opens the session for as long as it is open, stay on fast cores. */
    uint32_t threads;
    nano_cache cache; /* how keys and values are kept */
    nano_draft draft;
} nano_session_params;

nano_session_params nano_session_default_params(void);

nano_status nano_session_open(nano_session **out, const nano_model *model, const nano_session_params *params);
void nano_session_close(nano_session *session);
/* Use this adapter (NULL: none) for the tokens evaluated from now on; refused if it is not for this model. */
nano_status nano_session_set_adapter(nano_session *session, const nano_adapter *adapter);
/* Forget all tokens. Sampler and adapter stay. */
void nano_session_reset(nano_session *session);
uint32_t nano_session_length(const nano_session *session);  /* tokens evaluated so far */
uint32_t nano_session_context(const nano_session *session); /* tokens it has room for */
uint32_t nano_session_threads(const nano_session *session);

/* Append n tokens and compute. `all_logits`, if not NULL, receives [n][vocab_size] floats, row i being the
 * prediction after token i; the last row is always to be had from nano_session_logits(). The result does not
 * depend on how the tokens are split over calls, nor on the number of threads.
 * A non-causal model sees its whole input at once: the session must be empty, and a second call needs a
 * reset. */
nano_status nano_session_eval(nano_session *session, const uint32_t *ids, size_t n, float *all_logits);
/* Logits after the last token, [vocab_size]; NULL before the first, and after tokens were dropped or read
 * from a file. Valid until the next call. */
const float *nano_session_logits(const nano_session *session);

/* The tokens evaluated so far, nano_session_length() of them. Valid until the next call. */
const uint32_t *nano_session_tokens(const nano_session *session);
/* Drop all tokens but the first n; more than there are changes nothing. It is then as if the others had never
 * been: those that the last nano_session_generate() chose give back their random numbers, too. There are no
 * logits until the next nano_session_eval(); nano_session_sample() and nano_session_generate() compute them
 * again where they need them, from the last token, the same to the bit (with the adapter of that time). A
 * non-causal model's session can only drop all. */
nano_status nano_session_rewind(nano_session *session, uint32_t n);
/* Make the session one that holds a beginning of this text: drops what is not in it, and says how many tokens
 * are left. Evaluate the rest, if there is any, and it holds the text. */
nano_status nano_session_keep(nano_session *session, const uint32_t *ids, size_t n, uint32_t *kept);

/* ---- sampling -------------------------------------------------------------------------------------------
 */

typedef struct nano_sampler_params {
    double repetition_penalty; /* 0.01 to 100; 1 is off. Applied once to each token of the sequence so far */
    double temperature;        /* 0: always the likeliest token */
    uint32_t top_k;            /* keep the k likeliest; 0 keeps all */
    double top_p;              /* keep the fewest whose probabilities reach p; off when <= 0 or >= 1 */
    uint64_t seed;             /* one seed, one text */
} nano_sampler_params;

nano_sampler_params nano_sampler_default_params(void);
nano_status nano_session_set_sampler(nano_session *session, const nano_sampler_params *params);
/* The parameters, with a seed that goes on with the random numbers from here: setting them changes nothing.
 */
nano_sampler_params nano_session_sampler(const nano_session *session);
/* Choose the next token from the last logits. It is not appended: hand it to nano_session_eval(). */
nano_status nano_session_sample(nano_session *session, uint32_t *id);
/* Choose the next tokens and append them: at least 1, at most `most`, for which `ids` has room; *n says how
 * many. They are those that nano_session_sample() and nano_session_eval() in turn would give, to the last and
 * with any settings, only sooner: see nano_draft. A token that ends a text comes last and is not appended.
 * NANO_ERR_CONTEXT: there is no room for a token. */
nano_status nano_session_generate(nano_session *session, uint32_t *ids, size_t most, size_t *n);

/* What nano_session_generate() has done since the session was opened. */
typedef struct nano_session_stats {
    uint64_t generated;         /* tokens appended */
    uint64_t evals;             /* passes through the model for them */
    uint64_t drafted, accepted; /* guesses computed; those that came true */
    double seconds;             /* for all of it */
} nano_session_stats;

nano_session_stats nano_session_get_stats(const nano_session *session);

/* ---- session files ---------------------------------------------------------------------------------------
 */

/* Everything that is needed to go on: tokens, keys and values, sampler. Written under another name, which is
 * changed when all is written. Refused for a session whose tokens were computed with different adapters. */
nano_status nano_session_save_file(const nano_session *session, const char *path);
/* Replaces the session's tokens and its sampler. The file must be one of the same model, adapter and kind of
 * cache (NANO_ERR_MISMATCH); NANO_ERR_CONTEXT: the context has no room for it. On failure the session is as
 * before. */
nano_status nano_session_load_file(nano_session *session, const char *path);
/* How many tokens does a session file hold? Looks at the header only. */
nano_status nano_probe_session_file(const char *path, uint32_t *n_tokens);

/* ---- streaming text -------------------------------------------------------------------------------------
 */

/* A token may end in the middle of a UTF-8 character. Push each token's bytes through a nano_stream and print
 * what comes out: whole characters only, and U+FFFD for bytes that are none. Zero-initialise it. */
typedef struct nano_stream {
    unsigned char held[4];
    unsigned n_held;
} nano_stream;

/* Room that `out` needs for n bytes pushed. */
#define NANO_STREAM_ROOM(n) (3 * ((size_t)(n) + 4))

/* Both return the number of bytes written to `out`; there is no terminating zero. */
size_t nano_stream_push(nano_stream *stream, const char *bytes, size_t n, char *out);
size_t nano_stream_finish(nano_stream *stream, char *out); /* an incomplete tail becomes U+FFFD; room: 12 */

/* ---- layout ---------------------------------------------------------------------------------------------
 */

/* Where the members of this header's structures lie, so that programs in other languages need not guess:
 * the Python binding makes its structures of this table. */
typedef struct nano_member {
    const char *structure, *name; /* name "": the structure itself, with its size */
    uint32_t offset, size;        /* bytes */
    uint32_t count;               /* 1; arrays: how many of them, each of size / count bytes */
    uint32_t kind; /* 'u' unsigned number or enum, 'i' signed number, 'b' bool, 'f' float or double,
                      'p' pointer, 's' structure */
} nano_member;

/* The table, structure after structure; *n receives its length. */
const nano_member *nano_layout(size_t *n);

#ifdef __GNUC__
#pragma GCC visibility pop
#endif
#ifdef __cplusplus
}
#endif
#endif
