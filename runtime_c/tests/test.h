/* test.h: the smallest test harness that will do. Each CHECK counts; a TEST passes if all its CHECKs do. */
#ifndef TEST_H
#define TEST_H

#include <stdbool.h>
#include <stddef.h>

void test_begin(const char *name);
void test_check(bool ok, const char *file, int line, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

#define TEST(name) test_begin(name)
#define CHECK(condition) test_check((condition), __FILE__, __LINE__, "%s", #condition)
#define CHECK_THAT(condition, ...) test_check((condition), __FILE__, __LINE__, __VA_ARGS__)

void test_text(void);
void test_vocab(void);
void test_threads(void);
void test_topology(void);
void test_sampler(void);
void test_kernels(void);
void test_vectors(void);
void test_attention(void);
void test_gguf(void);
void test_weights(void);
void test_chat(void);
void test_model(void);
void test_session(void);
void test_reader(void);

#endif
