/* kernels.c: which tables there are. */
#include "kernels.h"

#include <string.h>

#if defined(__GNUC__) && !defined(NANO_PLAIN_C)
#if defined(__x86_64__)
#define ON_X86 1
#elif defined(__aarch64__)
#define ON_ARM 1
#elif defined(__wasm_simd128__)
#define ON_WASM 1
#endif
#endif

/* The best first. */
static const kernels *const built[] = {
#ifdef ON_X86
    &kernels_avx512,
#ifdef HAVE_AVXVNNI /* compilers of 2020 and before have not */
    &kernels_avxvnni,
#endif
    &kernels_avx2,
#elif defined(ON_ARM)
    &kernels_i8mm,
    &kernels_dotprod,
    &kernels_neon,
#elif defined(ON_WASM) && defined(__wasm_relaxed_simd__)
    &kernels_wasm_relaxed,
#elif defined(ON_WASM)
    &kernels_wasm_simd,
#endif
    &kernels_scalar,
};

const kernels *kernels_at(size_t index) {
    for (size_t i = 0; i < sizeof built / sizeof *built; i++)
        if ((!built[i]->usable || built[i]->usable()) && !index--) return built[i];
    return NULL;
}

const kernels *kernels_named(const char *name) {
    const kernels *k = kernels_at(0);
    for (size_t i = 0; name && k && strcmp(k->name, name) != 0; i++) k = kernels_at(i + 1);
    return k;
}
