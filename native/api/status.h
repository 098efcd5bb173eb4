// How the library fails: a status and a sentence, one pair per thread. Nothing here needs llama.cpp.

#pragma once

#include "restkv.h"

#include <cstddef>
#include <stdexcept>
#include <string>

// An exception that knows its status.
class restkv_error : public std::runtime_error {
public:
    restkv_error(restkv_status status, const std::string & message) : std::runtime_error(message), status(status) {}

    const restkv_status status;
};

// Room for a sentence with a path in it.
constexpr size_t RESTKV_SENTENCE_MAX = 2048;

// Remember what restkv_last_status() and restkv_last_error() return; gives the status back. Takes no memory, so it may be
// called where that has run out. A sentence longer than the room for it ends in "...".
restkv_status restkv_fail(restkv_status status, const char * message) noexcept;
restkv_status restkv_fail(restkv_status status, const std::string & message) noexcept;

// Inside a catch block: remember what was thrown. A restkv_error brings its status, running out of memory is
// RESTKV_NO_MEMORY, and all else is `otherwise`.
restkv_status restkv_caught(restkv_status otherwise) noexcept;

// The body of a function of the C boundary: forgets the last failure, and lets no exception through.
template <typename F>
restkv_status restkv_call(restkv_status otherwise, const F & body) noexcept {
    restkv_clear_error();
    try {
        return body();
    } catch (...) {
        return restkv_caught(otherwise);
    }
}
