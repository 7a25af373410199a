"""What the user calls: plan, apply, remove, inserted, save, load, switch, and more of the kind.

A decision becomes edits, which are prepared for all modules before the first is changed; and every
verb is a transaction, so that the host is as it was whatever fails. Each attention keeps its
origin, so that its surgery can be saved and done to a fresh host.
"""

from attn_surgery.surgery.compiled_attention import compile_attention
from attn_surgery.surgery.fingerprint import digest
from attn_surgery.surgery.hub import push_to_hub
from attn_surgery.surgery.loading import load
from attn_surgery.surgery.origin import origin_of
from attn_surgery.surgery.saving import save
from attn_surgery.surgery.switching import switch
from attn_surgery.surgery.verbs import apply, inserted, plan, remove

__all__ = [
    "apply",
    "compile_attention",
    "digest",
    "inserted",
    "load",
    "origin_of",
    "plan",
    "push_to_hub",
    "remove",
    "save",
    "switch",
]
