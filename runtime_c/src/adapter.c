/* adapter.c: opening and closing LoRA adapters, whichever container they come in. */
#include "error.h"
#include "reader.h"

static nano_status open_adapter(nano_adapter **out, const char *path, const void *bytes, size_t size) {
    *out = NULL;
    if (!path && !bytes)
        return nano_fail(NANO_ERR_ARGUMENT, "no adapter given: path or bytes must not be NULL");
    nano_adapter *a = plat_alloc(sizeof *a);
    if (!a) return nano_fail(NANO_ERR_MEMORY, "out of memory");
    a->storage.bytes = bytes;
    a->storage.size = size;
    nano_status status = path ? storage_map(&a->storage, path) : NANO_OK;
    if (!status)
        status = (gguf_is(a->storage.bytes, a->storage.size) ? adapter_read_gguf : adapter_read_bin)(a);
    if (status) {
        nano_adapter_close(a);
        return status;
    }
    *out = a;
    return NANO_OK;
}

nano_status nano_adapter_open_file(nano_adapter **out, const char *path) {
    return open_adapter(out, path, NULL, 0);
}

nano_status nano_adapter_open_memory(nano_adapter **out, const void *bytes, size_t size) {
    return open_adapter(out, NULL, bytes, size);
}

void nano_adapter_close(nano_adapter *adapter) {
    if (!adapter) return;
    storage_release(&adapter->storage);
    plat_free(adapter->layers);
    plat_free(adapter);
}

const nano_adapter_config *nano_adapter_get_config(const nano_adapter *adapter) {
    return &adapter->config;
}
