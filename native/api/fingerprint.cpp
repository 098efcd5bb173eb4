// restkv_fingerprint: what tells one model from another.

#include "model/fingerprint.h"

#include "api/status.h"
#include "restkv.h"

#include <cstring>

restkv_status restkv_fingerprint(const char * path_model, char * out, size_t n_max) {
    return restkv_call(RESTKV_IO, [&] {
        if (!path_model || !out) {
            return restkv_fail(RESTKV_INVALID, "restkv_fingerprint: no file, or nowhere to write");
        }
        const std::string found = restkv_fingerprint_of(path_model);
        if (found.size() >= n_max) {
            return restkv_fail(RESTKV_INVALID, "restkv_fingerprint: no room for the fingerprint");
        }
        memcpy(out, found.c_str(), found.size() + 1);
        return RESTKV_OK;
    });
}
