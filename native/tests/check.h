// The least that a test needs: CHECK counts failures and goes on; report() prints the closing line.

#pragma once

#include <cstdio>

inline int & restkv_checks_passed() {
    static int n = 0;
    return n;
}

inline int & restkv_checks_failed() {
    static int n = 0;
    return n;
}

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (condition) {                                                                                               \
            restkv_checks_passed()++;                                                                                  \
        } else {                                                                                                       \
            restkv_checks_failed()++;                                                                                  \
            fprintf(stderr, "%s:%d: CHECK(%s) failed\n", __FILE__, __LINE__, #condition);                              \
        }                                                                                                              \
    } while (0)

inline int restkv_report_checks() {
    printf("%d passed, %d failed\n", restkv_checks_passed(), restkv_checks_failed());
    return restkv_checks_failed() == 0 && restkv_checks_passed() > 0 ? 0 : 1;
}
