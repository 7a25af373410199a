"""The host as it is given: loaded, refused or copied, its code read, its state kept.

Here a name becomes a model (`load_model`) and weights become its own; models that cannot be
operated on are refused with what to do instead; inputs are made. What a module's code does is read
from its bytecode and source (`entry`, `inspect_forward`), and whatever is done to a module for a
while is undone (`Attributes`, `in_mode`, `undisturbed_randomness`). Nothing here knows what a trace
or an attention is.
"""

from attn_surgery.host.additions import matches_patterns, may_add, spells_addition
from attn_surgery.host.bytecode import (
    MATCHES,
    Place,
    is_asserted,
    is_machinery,
    place_in_code,
    signature,
    steps_from,
)
from attn_surgery.host.called_method import (
    entry,
    entry_name,
    has_entry,
    is_only_optional,
    parameters_of,
    ways,
)
from attn_surgery.host.compiling import compiled, noted, renamed
from attn_surgery.host.copies import device_copy, meta_copy
from attn_surgery.host.fidelity import (
    asks_for,
    describe,
    inspect_forward,
    runs_all_below,
    runs_its_children,
    watched_attributes,
)
from attn_surgery.host.files import check_folder, load_weights, read_weights, write_whole
from attn_surgery.host.inputs import (
    Input,
    InputSize,
    as_input,
    floating_dtype,
    guess_input,
    parse_input,
)
from attn_surgery.host.lent_tensors import lent_tensors
from attn_surgery.host.load import load_model
from attn_surgery.host.options import options, taken
from attn_surgery.host.other_methods import public_methods_run, run_by_other_methods
from attn_surgery.host.reachable_state import (
    ReachableState,
    functions_run_by,
)
from attn_surgery.host.restore import (
    Attributes,
    in_mode,
    likeness,
    marks,
    own_attributes,
    put_back_afterwards,
    refill,
    undisturbed_randomness,
)
from attn_surgery.host.unsupported import check_host, check_module, unwrapped

__all__ = [
    "MATCHES",
    "Attributes",
    "Input",
    "InputSize",
    "Place",
    "ReachableState",
    "as_input",
    "asks_for",
    "check_folder",
    "check_host",
    "check_module",
    "compiled",
    "describe",
    "device_copy",
    "entry",
    "entry_name",
    "floating_dtype",
    "functions_run_by",
    "guess_input",
    "has_entry",
    "in_mode",
    "inspect_forward",
    "is_asserted",
    "is_machinery",
    "is_only_optional",
    "lent_tensors",
    "likeness",
    "load_model",
    "load_weights",
    "marks",
    "matches_patterns",
    "may_add",
    "meta_copy",
    "noted",
    "options",
    "own_attributes",
    "parameters_of",
    "parse_input",
    "place_in_code",
    "public_methods_run",
    "put_back_afterwards",
    "read_weights",
    "refill",
    "renamed",
    "run_by_other_methods",
    "runs_all_below",
    "runs_its_children",
    "signature",
    "spells_addition",
    "steps_from",
    "taken",
    "undisturbed_randomness",
    "unwrapped",
    "watched_attributes",
    "ways",
    "write_whole",
]
