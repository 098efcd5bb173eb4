// The kernels of every instruction set that this processor has, against plain loops.

#pragma once

void restkv_test_kernels();
