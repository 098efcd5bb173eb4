#include "cache/failure.h"

#include <cstdio>
#include <new>
#include <stdexcept>

bool restkv_reason(char (&why)[RESTKV_REASON_MAX]) noexcept {
    const auto say = [&](const char * text) { snprintf(why, sizeof(why), "%s", text); };
    say("memory ran out");
    try {
        throw;
    } catch (const std::bad_alloc &) {
        return false;
    } catch (const std::length_error &) {
        return false;
    } catch (const std::exception & e) {
        say(e.what());
    } catch (...) {
        say("an error without a name");
    }
    return true;
}
