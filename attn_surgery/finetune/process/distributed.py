"""What several processes, perhaps of several machines, do as one.

Files are the first process's: no machine but its own need see them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from attn_surgery.errors import SurgeryError, one_line
from attn_surgery.finetune.process.optional_packages import need

T = TypeVar("T")


def read_by_first(accelerator: Any, read: Callable[[], T]) -> T:
    """Call a function in the first process, and return in all what it returned.

    Args:
        accelerator: Accelerate's.
        read: What to call.

    Raises:
        SurgeryError: It was raised, in all processes then.
    """
    if accelerator.num_processes == 1:
        return read()
    found: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            found[0] = read()
        except SurgeryError as error:
            found[1] = str(error)
        except Exception as error:  # the others must not wait for what never comes
            found[1] = one_line(error)
    utils: Any = need("accelerate.utils")
    utils.broadcast_object_list(found)
    if found[1] is not None:
        raise SurgeryError(found[1])
    return found[0]


def share_buffers(model: nn.Module, accelerator: Any) -> None:
    """Give all processes the first one's running statistics, which are those that are kept."""
    if accelerator.num_processes > 1:
        utils: Any = need("accelerate.utils")
        for buffer in model.buffers():
            utils.broadcast(buffer)
