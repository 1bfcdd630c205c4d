/* cli_info.c: nano-infer info FILE */
#include "cli.h"

#include <string.h>

/* A fact is printed as "name   value" or as a member of a JSON object: one list for both. */
typedef struct {
    bool json, tensors;
    unsigned n;
} fact_list;

static void begin_fact(fact_list *list, const char *name) {
    if (list->json)
        printf("%s\"%s\": ", list->n ? ", " : "{", name);
    else
        printf("%-18s ", name);
    list->n++;
}

static void end_fact(const fact_list *list) {
    if (!list->json) putchar('\n');
}

static void fact_number(fact_list *list, const char *name, uint64_t value) {
    begin_fact(list, name);
    printf("%llu", (unsigned long long)value);
    end_fact(list);
}

static void fact_float(fact_list *list, const char *name, double value) {
    begin_fact(list, name);
    printf("%g", value);
    end_fact(list);
}

static void fact_text(fact_list *list, const char *name, const char *value) {
    begin_fact(list, name);
    printf(list->json ? "\"%s\"" : "%s", value);
    end_fact(list);
}

static void fact_bool(fact_list *list, const char *name, bool value) {
    begin_fact(list, name);
    fputs(list->json ? (value ? "true" : "false") : (value ? "yes" : "no"), stdout);
    end_fact(list);
}

static void fact_version(fact_list *list, nano_container container, uint32_t major, uint32_t minor) {
    char text[32];
    snprintf(text, sizeof text, container == NANO_CONTAINER_GGUF ? "%u" : "%u.%u", major, minor);
    fact_text(list, "container", container == NANO_CONTAINER_GGUF ? "gguf" : "bin");
    fact_text(list, "version", text);
}

/* ---- what only a GGUF file has ---------------------------------------------------------------------------
 */

/* Bytes of any kind on one line of a terminal. */
static void print_line(const char *bytes, size_t n) {
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)bytes[i];
        if (c == '\n')
            fputs("\\n", stdout);
        else if (c < 0x20 || c == 0x7F)
            printf("\\x%02x", c);
        else
            putchar(c);
    }
}

/* JSON has no infinities and no NaN. */
static void print_number(bool json, double value) {
    if (json && !(value - value == 0))
        fputs("null", stdout);
    else
        printf("%.9g", value);
}

static void print_value(bool json, const nano_meta *value) {
    enum { SHOWN_TEXT = 400 };
    switch (value->type) {
    case NANO_META_UNSIGNED:
        printf("%llu", (unsigned long long)value->whole);
        break;
    case NANO_META_SIGNED:
        printf("%lld", (long long)value->whole);
        break;
    case NANO_META_NUMBER:
        print_number(json, value->number);
        break;
    case NANO_META_BOOL:
        fputs(value->whole ? "true" : "false", stdout);
        break;
    case NANO_META_TEXT:
        if (json) {
            json_bytes(stdout, value->text, value->text_length);
        } else {
            print_line(value->text, value->text_length < SHOWN_TEXT ? value->text_length : SHOWN_TEXT);
            if (value->text_length > SHOWN_TEXT)
                printf(" ... (%zu bytes; all with --json)", value->text_length);
        }
        break;
    case NANO_META_ARRAY: /* arrays of arrays are refused */
        break;
    }
}

/* Short arrays whole; of long ones the first items, in JSON as {"count": n, "first": [...]}. */
static void print_array(bool json, const nano_model *m, uint32_t index, uint64_t count) {
    enum { WHOLE = 16, FIRST = 4 };
    uint64_t shown = count <= WHOLE ? count : FIRST;
    nano_meta item;
    if (json && shown < count) printf("{\"count\": %llu, \"first\": ", (unsigned long long)count);
    putchar('[');
    for (uint64_t i = 0; i < shown && nano_model_meta_item(m, index, i, &item); i++) {
        if (i) fputs(", ", stdout);
        print_value(json, &item);
    }
    if (!json && shown < count) printf(", ... (%llu)", (unsigned long long)count);
    fputs(json && shown < count ? "]}" : "]", stdout);
}

static void metadata(fact_list *list, const nano_model *m) {
    nano_meta value;
    if (list->json)
        fputs(", \"metadata\": {", stdout);
    else
        puts("\nmetadata");
    for (uint32_t i = 0; nano_model_meta(m, i, &value); i++) {
        if (list->json) {
            if (i) fputs(", ", stdout);
            json_bytes(stdout, value.key, value.key_length);
            fputs(": ", stdout);
        } else {
            fputs("  ", stdout);
            print_line(value.key, value.key_length);
            for (size_t n = value.key_length; n < 38; n++) putchar(' ');
            putchar(' ');
        }
        if (value.type == NANO_META_ARRAY)
            print_array(list->json, m, i, value.count);
        else
            print_value(list->json, &value);
        if (!list->json) putchar('\n');
    }
    if (list->json) putchar('}');
}

static void tensors(fact_list *list, const nano_model *m) {
    nano_tensor t;
    fputs(list->json ? ", \"tensors\": [" : "\ntensors (rows first)\n", stdout);
    for (uint32_t i = 0; nano_model_tensor(m, i, &t); i++) {
        if (list->json) {
            fputs(i ? ", {\"name\": " : "{\"name\": ", stdout);
            json_bytes(stdout, t.name, t.name_length);
            printf(", \"type\": \"%s\", \"shape\": [", nano_quant_name(t.type));
        } else {
            fputs("  ", stdout);
            print_line(t.name, t.name_length);
            for (size_t n = t.name_length; n < 30; n++) putchar(' ');
            printf(" %-5s [", nano_quant_name(t.type));
        }
        for (uint32_t d = t.n_dims; d-- > 0;) printf("%llu%s", (unsigned long long)t.dims[d], d ? ", " : "");
        printf(list->json ? "], \"offset\": %llu, \"bytes\": %llu}" : "]  at %llu, %llu bytes\n",
               (unsigned long long)t.offset, (unsigned long long)t.n_bytes);
    }
    if (list->json) putchar(']');
}

/* ---- model and adapter -----------------------------------------------------------------------------------
 */

static void tensor_types(fact_list *list, const nano_config *c) {
    bool first = true;
    begin_fact(list, "tensor_types");
    if (list->json) putchar('{');
    for (int type = 0; type < NANO_N_QUANTS; type++) {
        if (!c->quant_tensors[type]) continue;
        printf(list->json ? "%s\"%s\": %u" : "%s%s %u", first ? "" : ", ", nano_quant_name((nano_quant)type),
               c->quant_tensors[type]);
        first = false;
    }
    if (list->json) putchar('}');
    end_fact(list);
}

static void stop_tokens(fact_list *list, const nano_model *m) {
    bool first = true;
    begin_fact(list, "stop_tokens");
    if (list->json) putchar('[');
    for (uint32_t id = 0; id < nano_model_config(m)->vocab_size; id++) {
        if (!nano_token_is_stop(m, id)) continue;
        printf("%s%u", first ? "" : ", ", id);
        first = false;
    }
    if (list->json) putchar(']');
    end_fact(list);
}

static void tokenizer_facts(fact_list *list, const nano_model *m) {
    static const char *const forms[] = {[NANO_CHAT_NONE] = "none",
                                        [NANO_CHAT_CHATML] = "chatml",
                                        [NANO_CHAT_LLAMA3] = "llama3",
                                        [NANO_CHAT_NANO] = "nano"};
    const nano_config *c = nano_model_config(m);
    uint32_t bos;
    fact_number(list, "special_tokens", c->n_special);
    fact_number(list, "longest_token", c->max_token);
    fact_bool(list, "byte_tokens", c->byte_tokens);
    stop_tokens(list, m);
    if (nano_token_bos(m, &bos)) fact_number(list, "text_begins_with", bos);
    fact_text(list, "chat", forms[nano_model_chat_family(m)]);
}

static nano_status model_facts(fact_list *list, const char *path) {
    nano_model *model;
    nano_status status = nano_model_open_file(&model, path, NULL);
    if (status) return status;
    const nano_config *c = nano_model_config(model);
    fact_text(list, "kind", "model");
    fact_version(list, c->container, c->version_major, c->version_minor);
    fact_text(list, "architecture", nano_arch_name(c->arch));
    fact_text(list, "quantisation", nano_quant_name(c->quant));
    tensor_types(list, c);
    if (c->quant == NANO_Q80) {
        fact_number(list, "group_size", c->group_size);
        if (c->header_group_size != c->group_size)
            fact_number(list, "group_size_header", c->header_group_size);
    }
    fact_number(list, "parameters", c->n_params);
    fact_number(list, "file_bytes", c->file_bytes);
    fact_number(list, "block_size", c->block_size);
    fact_number(list, "vocab_size", c->vocab_size);
    fact_number(list, "n_layer", c->n_layer);
    fact_number(list, "n_embd", c->n_embd);
    fact_number(list, "n_head", c->n_head);
    fact_number(list, "n_kv_head", c->n_kv_head);
    fact_number(list, "head_dim", c->head_dim);
    fact_number(list, "n_hidden", c->n_hidden);
    fact_bool(list, "tied", c->tied);
    fact_bool(list, "causal", c->causal);
    fact_bool(list, "qkv_bias", c->qkv_bias);
    fact_bool(list, "linear_bias", c->linear_bias);
    fact_bool(list, "qk_norm", c->qk_norm);
    fact_float(list, "norm_eps", (double)c->norm_eps);
    fact_text(list, "positions", c->use_rope ? "rope" : "learned");
    if (c->use_rope) {
        fact_float(list, "rope_theta", (double)c->rope_theta);
        fact_text(list, "rope_pairs", c->rope_halves ? "halves" : "interleaved");
    }
    tokenizer_facts(list, model);
    fact_float(list, "kv_bytes_per_token", 8.0 * c->n_layer * c->n_kv_head * c->head_dim);
    if (c->container == NANO_CONTAINER_GGUF) {
        metadata(list, model);
        if (list->tensors) tensors(list, model);
    }
    nano_model_close(model);
    return NANO_OK;
}

/* A fact that a GGUF adapter leaves to its model. */
static void fact_known(fact_list *list, const char *name, uint32_t value) {
    if (value) fact_number(list, name, value);
}

static nano_status adapter_facts(fact_list *list, const char *path) {
    nano_adapter *adapter;
    nano_status status = nano_adapter_open_file(&adapter, path);
    if (status) return status;
    const nano_adapter_config *c = nano_adapter_get_config(adapter);
    fact_text(list, "kind", "adapter");
    fact_version(list, c->container, c->version_major, c->version_minor);
    fact_text(list, "architecture", nano_arch_name(c->arch));
    fact_number(list, "rank", c->rank);
    fact_float(list, "alpha", (double)c->alpha);
    fact_number(list, "parameters", c->n_params);
    fact_number(list, "file_bytes", c->file_bytes);
    fact_known(list, "n_layer", c->n_layer);
    fact_known(list, "n_embd", c->n_embd);
    fact_known(list, "n_head", c->n_head);
    fact_known(list, "n_kv_head", c->n_kv_head);
    fact_known(list, "n_hidden", c->n_hidden);
    nano_adapter_close(adapter);
    return NANO_OK;
}

int cli_info(int argc, char **argv) {
    fact_list list = {0};
    const option options[] = {
        {0, "json", NULL, OPTION_FLAG, &list.json, NULL, 0, 0, "print one JSON object"},
        {0, "tensors", NULL, OPTION_FLAG, &list.tensors, NULL, 0, 0,
         "list the tensors of a GGUF model: type, shape, place"},
    };
    const command c = {
        .name = "info",
        .usage = "FILE [--json] [--tensors]",
        .description = "Says what is in a model file or a LoRA adapter, after checking that it is whole.\n",
        .examples = "  nano-infer info model.bin\n"
                    "  nano-infer info model.gguf --tensors\n"
                    "  nano-infer info lora.bin --json\n",
        .options = options,
        .n_options = sizeof options / sizeof *options,
        .min_operands = 1,
        .max_operands = 1,
        .operands = "FILE",
    };
    const char *path;
    int exit_code;
    if (!cli_parse(&c, argc, argv, &path, &exit_code)) return exit_code;

    nano_kind kind;
    nano_status status = nano_probe_file(path, &kind);
    if (!status) status = (kind == NANO_KIND_ADAPTER ? adapter_facts : model_facts)(&list, path);
    if (status) return cli_library_error(status, status == NANO_ERR_FILE ? NULL : path);
    if (list.json) puts("}");
    return cli_flush_output();
}
