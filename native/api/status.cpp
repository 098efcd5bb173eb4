#include "api/status.h"

#include <cstdio>
#include <cstring>
#include <new>

namespace {

struct failure {
    restkv_status status                       = RESTKV_OK;
    char          message[RESTKV_SENTENCE_MAX] = "";
};

thread_local failure last;

}  // namespace

restkv_status restkv_fail(restkv_status status, const char * message) noexcept {
    last.status = status;
    if (snprintf(last.message, sizeof(last.message), "%s", message) >= (int) sizeof(last.message)) {
        memcpy(last.message + sizeof(last.message) - 4, "...", 4);
    }
    return status;
}

restkv_status restkv_fail(restkv_status status, const std::string & message) noexcept {
    return restkv_fail(status, message.c_str());
}

restkv_status restkv_caught(restkv_status otherwise) noexcept {
    try {
        throw;
    } catch (const restkv_error & e) {
        return restkv_fail(e.status, e.what());
    } catch (const std::bad_alloc &) {
        return restkv_fail(RESTKV_NO_MEMORY, "memory ran out");
    } catch (const std::length_error &) {  // of a container: more than there can be
        return restkv_fail(RESTKV_NO_MEMORY, "memory ran out");
    } catch (const std::exception & e) {
        return restkv_fail(otherwise, e.what());
    } catch (...) {
        return restkv_fail(otherwise, "an error without a name");
    }
}

restkv_status restkv_last_status(void) {
    return last.status;
}

const char * restkv_last_error(void) {
    return last.message;
}

void restkv_clear_error(void) {
    last.status     = RESTKV_OK;
    last.message[0] = '\0';
}
