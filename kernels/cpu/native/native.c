/* Forward ops in float32 for CPUs, compiled as one by kernels/cpu/library.py.
 *
 * Every output element is computed by one fixed sequence of operations: sums run over 8 lanes, element i in lane
 * i mod 8, lanes joined in one tree at the end. Rows, blocks of rows and threads only decide who computes an element,
 * never how. So a row has the same bits in any batch, which is what trainer and engine rely on.
 *
 * Vectors are GCC's own extension: 32 bytes are one AVX register, or two of NEON.
 */

#include "lanes.h"
#include "ahead.h"

#include "linear.c"
#include "rows.c"
#include "int8_linear.c"
#include "attention.c"
#include "layers.c"
