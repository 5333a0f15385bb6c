#define KERNELS gratis_kernels_portable
#include "kernels.h"
