#define RSM_ISA avx2
#define RSM_UNIT kUnitAvx2
#include "unit.h"
