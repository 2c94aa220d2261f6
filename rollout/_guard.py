"""Guard against another package named `kernels`; Hugging Face publishes one."""

import importlib.metadata

import kernels


def require_own_kernels() -> None:
    """Raise an ImportError unless Paceline's `kernels` is the only package of that name."""
    if not getattr(kernels, "IS_PACELINE", False):
        found = kernels.__file__ or next(iter(kernels.__path__))
        raise ImportError(
            f"Paceline's package `kernels` is hidden by another package of that name, found at {found}; "
            "run `pip uninstall kernels`, then install Paceline again"
        )
    if _is_installed("kernels"):
        raise ImportError(
            "the Hugging Face package `kernels` is installed, and transformers would "
            f"mistake Paceline's `kernels`, at {kernels.__file__}, for it; run `pip uninstall kernels`"
        )


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
