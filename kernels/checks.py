"""Checks of operands that several ops share. An op calls them before it dispatches."""

import torch

__all__ = ["check_linear_operands", "require_dtype", "require_rows"]


def require_dtype(op: str, dtype: torch.dtype, *tensors: torch.Tensor) -> None:
    """Refuses a tensor of another type, which a kernel would read as the wrong bytes.

    Raises:
        ValueError: a tensor has another type.
    """
    for tensor in tensors:
        if tensor.dtype is not dtype:
            expected = str(dtype).removeprefix("torch.")
            raise ValueError(f"{op}: operands must be {expected}, got {tensor.dtype}")


def require_rows(op: str, num_rows: int, *per_row: torch.Tensor) -> None:
    """Refuses a tensor that does not have one entry per row.

    Raises:
        ValueError: a tensor has another length.
    """
    for tensor in per_row:
        if len(tensor) != num_rows:
            raise ValueError(
                f"{op}: {num_rows} rows need tensors of as many rows, got {tuple(tensor.shape)}"
            )


def check_linear_operands(
    op: str,
    x_TK: torch.Tensor,
    weight_NK: torch.Tensor,
    bias_N: torch.Tensor | None,
    scale_N: torch.Tensor | None = None,
) -> None:
    """Refuses rows, a bias or scales that do not fit the weight. The caller checks the type of the weight.

    Raises:
        ValueError: a size does not fit; or the bias is not of the type of the rows, or the scales are not float32.
    """
    out_features, in_features = weight_NK.shape
    vectors = [vector for vector in (bias_N, scale_N) if vector is not None]
    if x_TK.shape[1] != in_features or any(len(vector) != out_features for vector in vectors):
        raise ValueError(
            f"{op}: rows of {x_TK.shape[1]} do not fit weights {tuple(weight_NK.shape)}; or the shape of a bias or scale does not fit"
        )
    if bias_N is not None:
        require_dtype(op, x_TK.dtype, bias_N)
    if scale_N is not None:
        require_dtype(op, torch.float32, scale_N)
