#define GRATIS_ISA_AVX2
#define KERNELS gratis_kernels_avx2
#include "kernels.h"
