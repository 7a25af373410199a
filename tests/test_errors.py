"""What counts as memory that ran out, however it is said, and that it costs no import to know."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from attn_surgery.errors import is_exhausted, is_out_of_memory

SAID = [
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you "
    "tried to allocate 4000000000000000 bytes. Error code 12 (Cannot allocate memory)",
    "[enforce fail] data. DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes.",
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
    "cuDNN Frontend error: detail::execute(...) failed with CUDNN_STATUS_ALLOC_FAILED",
    "CUDA ran out of memory outside PyTorch's allocator.",
    "CUDA driver error: out of memory",
    "HIP out of memory. Tried to allocate 20.00 MiB",
    "miopenStatusAllocFailed",
    "MPS backend out of memory (MPS allocated: 1.00 GB, other allocations: 2.00 GB)",
    "Invalid buffer size: 100.00 GiB",
    "XPU out of memory. Tried to allocate 20.00 GiB",
    "UR backend failed. UR backend returns:39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)",
    "backend='inductor' raised:\nOutOfMemoryError: CUDA out of memory",
    "backend='inductor' raised:\nMemoryError: ",
]
ANOTHER = [
    "CUDA error: an illegal memory access was encountered",
    "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(...)`",
    "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED",
    "GET was unable to find an engine to execute this computation",
    "mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)",
]


class AcceleratorError(RuntimeError):
    """Stands for that of torch, which Python code cannot give a code."""

    def __init__(self, code: int):
        super().__init__()
        self.error_code = code


@pytest.mark.parametrize("said", SAID)
def test_memory_that_ran_out(said):
    assert is_out_of_memory(RuntimeError(said))
    assert is_exhausted(RuntimeError(said))


@pytest.mark.parametrize("said", ANOTHER)
def test_another_failure(said):
    assert not is_out_of_memory(RuntimeError(said))
    assert not is_exhausted(RuntimeError(said))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError(), MemoryError(), AcceleratorError(2)])
def test_by_class(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error", [AcceleratorError(719), ValueError("out of memory"), RecursionError()]
)
def test_what_is_no_memory(error):
    assert not is_out_of_memory(error)


def test_what_the_allocator_says():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    assert is_out_of_memory(caught.value)


# What an exception came of


def chosen() -> None:
    try:
        raise MemoryError
    except MemoryError as error:
        raise ValueError("wrapped") from error


def along_the_way() -> None:
    try:
        chosen()
    except ValueError:
        raise KeyError("while handling it")  # noqa: B904


def denied() -> None:
    try:
        raise MemoryError
    except MemoryError:
        raise ValueError("said to be something else") from None


def raised(call: Callable[[], None]) -> Exception:
    try:
        call()
    except Exception as error:
        return error
    raise AssertionError


@pytest.mark.parametrize(
    ("call", "expected"), [(chosen, True), (along_the_way, True), (denied, False)]
)
def test_what_led_to_an_exception(call, expected):
    assert is_out_of_memory(raised(call)) is expected


def fails() -> None:
    raise ValueError("of its own")


def test_what_was_handled_before_led_to_nothing():
    """As when somebody tries again with a smaller batch, and that fails for another reason."""
    try:
        raise torch.OutOfMemoryError
    except torch.OutOfMemoryError:
        assert raised(fails).__context__ is not None
        assert not is_out_of_memory(raised(fails))
        assert is_out_of_memory(raised(along_the_way))


def test_exceptions_in_a_circle():
    first, second = ValueError(), KeyError()
    first.__cause__, second.__cause__ = second, first
    assert not is_out_of_memory(first)


def test_stack_that_ran_out():
    assert is_exhausted(RecursionError())
    assert not is_exhausted(ValueError())


def test_it_takes_no_torch():
    code = (
        "import sys; from attn_surgery.errors import is_out_of_memory; "
        "assert is_out_of_memory(MemoryError()); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
