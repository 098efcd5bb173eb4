#include "check.h"

int main() {
    test_kernels();
    test_select();
    test_compact();
    test_score_head();
    printf("all tests passed\n");
    return 0;
}
