#include "stages/cpu/kernels.h"

extern const restkv_kernels restkv_kernels_baseline;

#ifdef RESTKV_HAVE_X86_ISA
extern const restkv_kernels restkv_kernels_avx2;
extern const restkv_kernels restkv_kernels_avx512;
#endif

const restkv_kernels * restkv_cpu_kernels() {
#ifdef RESTKV_HAVE_X86_ISA
    static const restkv_kernels * const best = [] {
        __builtin_cpu_init();
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
            return &restkv_kernels_avx512;
        }
        // every processor with AVX2 has F16C
        if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
            return &restkv_kernels_avx2;
        }
        return &restkv_kernels_baseline;
    }();
    return best;
#else
    return &restkv_kernels_baseline;
#endif
}
