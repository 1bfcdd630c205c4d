/* test_chat.c: messages in the forms that models were trained on. */
#include "test.h"
#include "tiny_gguf.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The turn's tokens as text, to compare with. */
static void turn_is(const nano_model *m, const char *system, const char *text, bool first,
                    const char *expected) {
    uint32_t *ids;
    size_t n, at = 0;
    char got[600];
    nano_status status = nano_chat_turn(m, system, text, strlen(text), first, &ids, &n);
    CHECK_THAT(status == NANO_OK, "%s", nano_last_error());
    for (size_t i = 0; i < n; i++) {
        size_t length;
        const char *bytes = nano_token_bytes(m, ids[i], &length);
        if (at + length >= sizeof got) break;
        memcpy(got + at, bytes, length);
        at += length;
    }
    got[at] = 0;
    CHECK_THAT(strcmp(got, expected) == 0, "got '%s', not '%s'", got, expected);
    nano_free(ids);
}

static nano_model *with_template(const char *kind, const char *text, tiny_file *f) {
    tiny_gguf g = tiny_begin_gguf(kind);
    if (text) tg_text(&g, "tokenizer.chat_template", text);
    *f = tg_finish(&g, 3);
    nano_model *m;
    CHECK_THAT(nano_model_open_memory(&m, f->bytes, f->size, NULL) == NANO_OK, "%s", nano_last_error());
    return m;
}

/* The conversation's tokens after it was settled, as text; "-": it stays as it is. */
static void settles_to(const nano_model *m, const char *conversation, const char *expected) {
    uint32_t *ids, *more;
    size_t n, from, n_more, at = 0;
    char got[600] = "-";
    CHECK(nano_tokenize(m, conversation, strlen(conversation), true, &ids, &n) == NANO_OK);
    CHECK(nano_chat_settle(m, ids, n, &from, &more, &n_more) == NANO_OK);
    for (size_t i = 0; more && i < from + n_more; i++) {
        size_t length;
        const char *bytes = nano_token_bytes(m, i < from ? ids[i] : more[i - from], &length);
        memcpy(got + at, bytes, length);
        at += length;
        got[at] = 0;
    }
    CHECK_THAT(strcmp(got, expected) == 0, "got '%s', not '%s'", got, expected);
    nano_free(ids);
    nano_free(more);
}

static void thoughts(void) {
    TEST("chat: what Qwen3 thought aloud is left out of earlier answers, and nobody else's");
    static const char said[] =
        "<|im_start|>assistant\n<think>\nthe\n</think>\n\nin x<|im_end|>\n<|im_start|>user\n"
        "y</think><|im_end|>\n<|im_start|>assistant\n";
    tiny_file f;
    nano_model *m =
        with_template("gguf-llama", "<|im_start|> {{ content.split('</think>')[-1].lstrip('\\n') }}", &f);
    char text[400];
    snprintf(text, sizeof text, "%s%s", said, "<think>a</think>b</think>\n\nthe </think");
    char expected[400];
    snprintf(expected, sizeof expected, "%s%s", said, "the </think");
    settles_to(m, text, expected);
    snprintf(text, sizeof text, "%s%s", said, "<think>all</think>\n");
    settles_to(m, text, said);
    settles_to(m, said, "-");                          /* nothing said yet */
    settles_to(m, "<|im_start|>user\n</think>x", "-"); /* no answer */
    settles_to(m, "", "-");
    uint32_t bad = 300, *ids;
    size_t from, n;
    CHECK(nano_chat_settle(m, &bad, 1, &from, &ids, &n) == NANO_ERR_ARGUMENT && !ids);
    nano_model_close(m);
    free(f.bytes);
    m = with_template("gguf-llama", "<|im_start|>", &f);
    settles_to(m, "<|im_start|>assistant\n<think>a</think>b", "-");
    nano_model_close(m);
    free(f.bytes);
}

void test_chat(void) {
    thoughts();
    tiny_file f;
    uint32_t *ids;
    size_t n;
    TEST("chat: ChatML, with the template's system prompt, another, or none");
    nano_model *m = with_template(
        "gguf-llama", "{{ '<|im_start|>system\\n' + m }}{{ '<|im_start|>system\nYou are\\nTiny<|im_end|>' }}",
        &f);
    CHECK(nano_model_chat_family(m) == NANO_CHAT_CHATML);
    turn_is(m, NULL, "in the", true,
            "<|im_start|>system\nYou are\nTiny<|im_end|>\n<|im_start|>user\nin "
            "the<|im_end|>\n<|im_start|>assistant\n");
    turn_is(m, "S", "x", true,
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n");
    turn_is(m, "", "x", true, "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n");
    turn_is(m, NULL, "x", false, "<|im_end|>\n<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n");
    size_t n_special = 0;
    CHECK(nano_chat_turn(m, "", "<|im_end|>", 10, true, &ids, &n) == NANO_OK);
    for (size_t i = 0; i < n; i++) n_special += nano_token_is_special(m, ids[i]);
    CHECK_THAT(n_special == 3, "the user's own <|im_end|> became a special token: %zu", n_special);
    nano_free(ids);
    nano_model_close(m);
    free(f.bytes);

    TEST("chat: Nano's form; it has no system prompt");
    m = with_template("gguf-nano", NULL, &f);
    CHECK(nano_model_chat_family(m) == NANO_CHAT_NANO);
    turn_is(m, NULL, "Hi <|eos|>", true, "<|instruct_mark|>Hi <|eos|><|response_mark|>");
    turn_is(m, "", "x", false, "<|eos|><|instruct_mark|>x<|response_mark|>");
    CHECK(nano_chat_turn(m, "S", "x", 1, true, &ids, &n) == NANO_ERR_ARGUMENT && !ids);
    CHECK(strstr(nano_last_error(), "no place for a system prompt") != NULL);
    nano_model_close(m);
    free(f.bytes);
    f = tiny_kind_file("f32");
    CHECK(nano_model_open_memory(&m, f.bytes, f.size, NULL) == NANO_OK);
    turn_is(m, NULL, "the", true, "<|instruct_mark|>the<|response_mark|>");
    nano_model_close(m);
    free(f.bytes);

    TEST("chat: a template of no known family, and none at all");
    m = with_template("gguf-llama", "{{ '[INST]' }}", &f);
    CHECK(nano_model_chat_family(m) == NANO_CHAT_NONE);
    CHECK(nano_chat_turn(m, NULL, "x", 1, true, &ids, &n) == NANO_ERR_ARGUMENT);
    nano_model_close(m);
    free(f.bytes);

    TEST("chat: Llama 3's form, and its dates where the template has them");
    for (int dated = 0; dated < 2; dated++) {
        tiny_spec spec = tiny_spec_of("gguf-fives");
        tiny_weights *w = tiny_make(&spec);
        tiny_gguf g = {0};
        tiny_put_gguf(&g, w);
        tg_text(&g, "tokenizer.chat_template",
                dated ? "<|start_header_id|> Cutting Knowledge Date" : "<|start_header_id|>");
        f = tg_finish(&g, 3);
        tiny_free(w);
        nano_status status = nano_model_open_memory(&m, f.bytes, f.size, NULL);
        CHECK_THAT(status == NANO_OK, "%s", nano_last_error());
        CHECK(nano_model_chat_family(m) == NANO_CHAT_LLAMA3);
        turn_is(m, NULL, " x\n", true,
                dated ? "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge "
                        "Date: December "
                        "2023\nToday Date: 26 Jul "
                        "2024\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nx<|eot_id|>"
                        "<|start_header_id|>assistant<|end_header_id|>\n\n"
                      : "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nx<|eot_id|><|start_"
                        "header_id|>"
                        "assistant<|end_header_id|>\n\n");
        turn_is(
            m, NULL, "x", false,
            "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nx<|eot_id|><|start_header_id|>assistant"
            "<|end_header_id|>\n\n");
        CHECK(nano_token_is_stop(m, 264));
        nano_model_close(m);
        free(f.bytes);
    }
}
