"""Functions that Numba compiles: seconds on the first call on a machine, which keeps them; then
hundredths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba

# for those that only compiled ones call: they are kept with their caller
inner_jit = numba.njit(nogil=True)


def jit(*, fastmath: bool = False) -> Callable[[Callable[..., Any]], Any]:
    """Decorates what Python calls, by `call_kernel`."""

    def decorate(function: Callable[..., Any]) -> Any:
        try:
            return numba.njit(cache=True, nogil=True, fastmath=fastmath)(function)
        except RuntimeError:  # no folder that could hold it is writable
            return numba.njit(nogil=True, fastmath=fastmath)(function)

    return decorate


def call_kernel(kernel: Any, *values: Any) -> Any:
    try:
        return kernel(*values)
    except OSError:  # compiled, but a full disk would not keep it; nothing has run yet
        return kernel(*values)
