"""Paceline's operations on tensors: one op per file, importable on any machine.

Each file `kernels/<op>.py` has, in this order: the formula, `<op>_reference` in plain PyTorch (ground truth), and the public
`<op>`. The public op checks its operands (`kernels.checks`), then chooses an implementation by the device and type of its
tensors, in one place per op. Callers never choose: nothing above this package imports `kernels.cpu` or `kernels.gpu`.

    def _forward(x):                                    # the only place that knows of devices
        if x.is_cuda:
            from kernels.gpu.<op> import <op>_triton    # imported on first use; needs triton
            return <op>_triton(x)
        if runs_natively(x):                            # float32 or bfloat16 on a CPU, with a C compiler
            return <op>_native(x)                       # kernels/cpu/<op>.py: passes addresses to C
        return _<op>_tensors(x)                         # PyTorch, any type and device

The launchers in `kernels/cpu` and `kernels/gpu` do not check operands again, except for what only their kernel needs
(contiguous memory). A differentiable op calls the same `_forward` inside its autograd function, so that trainer and engine
run one implementation. What an implementation prefers is asked for by ops, too: `packed_weight.pack_weight`,
`paged_kv.cache_lanes` and `decoder_layers.make_decoder_layers` return None (or 1) where a device has no such preference.
"""

# `rollout` looks for it: Hugging Face publishes another package of this name. Define no `__version__` here:
# transformers would read it as that package's.
IS_PACELINE = True
