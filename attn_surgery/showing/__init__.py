"""What inserted attention does: gates, maps and predictions over images, beside the host.

What an attention does is told by its input and output alone (`gates`), so no class is named here.
`show` runs both models and hands on a `Gallery`, which knows how it is shown: as text, as a sheet,
as a page, as arrays.
"""

from attn_surgery.showing.activation_maps import METHODS, check_method
from attn_surgery.showing.gallery import Gallery, check_ending
from attn_surgery.showing.predictions import IMAGENET
from attn_surgery.showing.show import show

__all__ = [
    "IMAGENET",
    "METHODS",
    "Gallery",
    "check_ending",
    "check_method",
    "show",
]
