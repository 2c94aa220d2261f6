/* Forward ops for CPUs on float32 or bfloat16, compiled as one by kernels/cpu/library.py, once for each.
 *
 * Every output element is computed by one fixed sequence of operations: sums run over lanes, joined in one tree at the
 * end. Rows, blocks of rows and threads only decide who computes an element, never how. So a row has the same bits in any
 * batch, which is what trainer and engine rely on. bfloat16 is rounded to where an op ends and nowhere else.
 *
 * Vectors are GCC's own extension: 32 bytes are one AVX register or two of NEON, 64 one of AVX-512.
 */

#include "lanes.h"
#include "elements.h"
#include "ahead.h"
#include "panels.h"

#include "linear.c"
#include "rows.c"
#include "int8_linear.c"
#include "attention.c"
#include "vocabulary.c"
#include "layers.c"
