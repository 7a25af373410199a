"""The host as it was before an attention file wrote on it, so that another file's can follow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor, nn

from attn_surgery.errors import SurgeryError
from attn_surgery.surgery.fingerprint import digest

_FOUND = "_host_as_found"


class HostAsFound:
    """What a host was before attention files, kept with its attention.

    Attributes:
        forms: Every tensor of the host -> its dtype and shape.
        aside: The tensors of the host, as found, on which a file ever wrote, or in whose place an
            attention is.
    """

    def __init__(self, forms: Mapping[str, str], aside: dict[str, Tensor]):
        self.forms = forms
        self.aside = aside
        self._digests: dict[str, tuple[object, str]] = {}

    def check(
        self, path: str | Path, expected: Mapping[str, str], state: Mapping[str, Tensor]
    ) -> None:
        """Refuse a file that was made for a host with other numbers.

        Args:
            path: The file.
            expected: Each tensor of the host that has to be as it was found -> its hash.
            state: The host's tensors, as they are now.

        Raises:
            SurgeryError: It is such a file.
        """
        if differing := [key for key in expected if self._digest(key, state) != expected[key]]:
            raise SurgeryError(
                f"{path} was made for a host with other weights: {len(differing)} tensors differ, "
                f"{differing[0]!r} the first; load the host's own weights before, or, if training "
                "changed them, write them too: save(..., host='all')"
            )

    def _digest(self, key: str, state: Mapping[str, Tensor]) -> str:
        """Return the hash of a tensor, computed again only where the tensor was written on."""
        tensor = self.aside[key] if key in self.aside else state[key]
        if tensor.is_inference():  # nobody counts what is written on it
            return digest(tensor)
        stamp = (id(tensor), tensor.data_ptr(), tensor._version)
        known, found = self._digests.get(key, (None, ""))
        if known != stamp:
            found = digest(tensor)
            self._digests[key] = (stamp, found)
        return found

    def keep(self, attentions: Iterable[nn.Module]) -> None:
        """Let the first attention keep it; copies and pickles of that do, too."""
        vars(next(iter(attentions)))[_FOUND] = self


def host_as_found(attentions: Iterable[nn.Module]) -> HostAsFound | None:
    """Return what an attention file's host was, or None where no file was loaded."""
    kept = (vars(each).get(_FOUND) for each in attentions)
    return next((each for each in kept if each is not None), None)
