#include "methods/methods.h"

#include <cstring>

// One line a method, in the order in which they are listed.
#define RESTKV_METHODS(ROW)                                                                                            \
    ROW(restkv)                                                                                                        \
    ROW(snapkv)                                                                                                        \
    ROW(tova)                                                                                                          \
    ROW(h2o)                                                                                                           \
    ROW(streamingllm)                                                                                                  \
    ROW(lacache)                                                                                                       \
    ROW(fifo)                                                                                                          \
    ROW(random)                                                                                                        \
    ROW(keydiff)                                                                                                       \
    ROW(knorm)

#define ROW(NAME) extern const restkv_method restkv_method_##NAME;
RESTKV_METHODS(ROW)
#undef ROW

#define ROW(NAME) &restkv_method_##NAME,
static const restkv_method * const METHODS[] = { RESTKV_METHODS(ROW) };
#undef ROW

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
