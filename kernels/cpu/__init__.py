"""Forward ops in C for CPUs that multiply float32 faster than bfloat16; see native.c."""
