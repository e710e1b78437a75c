#define RSM_ISA avx512
#define RSM_UNIT kUnitAvx512
#include "unit.h"
