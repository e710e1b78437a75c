#define RSM_ISA baseline
#define RSM_UNIT kUnitBaseline
#include "unit.h"
