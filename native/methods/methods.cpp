#include "methods.h"

#include <cstring>

static const restkv_method * const METHODS[] = {
    &restkv_method_restkv,       &restkv_method_snapkv,  &restkv_method_tova, &restkv_method_h2o,
    &restkv_method_streamingllm, &restkv_method_lacache, &restkv_method_fifo, &restkv_method_random,
    &restkv_method_keydiff,      &restkv_method_knorm,
};

const restkv_method * restkv_find_method(const char * name) {
    for (const restkv_method * method : METHODS) {
        if (strcmp(method->name, name) == 0) {
            return method;
        }
    }
    return nullptr;
}

uint32_t restkv_method_count(void) {
    return sizeof(METHODS) / sizeof(METHODS[0]);
}

const char * restkv_method_name(uint32_t i) {
    return i < restkv_method_count() ? METHODS[i]->name : nullptr;
}

const char * restkv_method_summary(uint32_t i) {
    return i < restkv_method_count() ? METHODS[i]->summary : nullptr;
}
