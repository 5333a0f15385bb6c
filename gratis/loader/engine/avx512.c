#define GRATIS_ISA_AVX512
#define KERNELS gratis_kernels_avx512
#include "kernels.h"
