// Steps of an eviction that fail on purpose, in the test build restkv-wrong-stage and nowhere else. $RESTKV_FAIL_AT is
// STEP:N:KIND:RUN. The step of this name fails when it is reached for the Nth time, from 0, in this run: with KIND "memory"
// as where memory runs out, with "device" as where a device fails, and else with no standard exception.

#pragma once

#ifndef RESTKV_TEST_WRONG_STAGE

inline void restkv_step(const char *) {}

#else

#    include <cstdlib>
#    include <mutex>
#    include <new>
#    include <sstream>
#    include <stdexcept>
#    include <string>

inline void restkv_step(const char * name) {
    static std::mutex  mutex;
    static std::string last;
    static int         n_reached = 0;

    const std::lock_guard<std::mutex> lock(mutex);

    const char *      setting = getenv("RESTKV_FAIL_AT");
    const std::string now     = setting ? setting : "";
    if (now != last) {
        last      = now;
        n_reached = 0;
    }
    std::istringstream words(now);
    std::string        step, n, kind;
    std::getline(words, step, ':');
    std::getline(words, n, ':');
    std::getline(words, kind, ':');
    if (step != name || n_reached++ != std::stoi(n)) {
        return;
    }
    if (kind == "memory") {
        throw std::bad_alloc();
    }
    if (kind == "device") {
        throw std::runtime_error("the device failed on purpose");
    }
    throw 1;
}

#endif
