"""timm's attention modules under timm's names, as timm builds them.

Every attention of ``timm.layers.create_attn`` that maps ``(N, C, H, W)`` to the same shape whatever
H and W are. Left out:

- ``se`` and ``cbam``: this package has its own, whose weights load from and into timm's;
- ``bottleneck``, which is built for one size of map; ``halo``, whose blocks of 8 x 8 have to fill
  the map; ``bat``, whose 7 x 7 blocks have to, and which draws random numbers in train mode.

A name that the installed timm does not know is not registered. Which of them the installed timm
has broken is not written down here: ``build`` tries each one before it is trusted.
"""

from timm.layers.create_attn import get_attn

from attn_surgery.attention.construction.registry import Builder, register

TIMM = {
    "ese": "Lee and Park 2019, arXiv:1911.06667",
    "eca": "Wang et al. 2019, arXiv:1910.03151",
    "ecam": "timm's, after Wang et al. 2019, arXiv:1910.03151",
    "ceca": "timm's, after Wang et al. 2019, arXiv:1910.03151",
    "ge": "Hu et al. 2018, arXiv:1810.12348",
    "gc": "Cao et al. 2019, arXiv:1904.11492",
    "gca": "Cao et al. 2019, arXiv:1904.11492",
    "lcbam": "timm's, after Woo et al. 2018, arXiv:1807.06521",
    "coord": "Hou et al. 2021, arXiv:2103.02907",
    "scoord": "timm's, after Hou et al. 2021, arXiv:2103.02907",
    "ela": "Xu and Wan 2024, arXiv:2403.01123",
    "strip": "timm's, after Hou et al. 2020, arXiv:2003.13328",
    "sk": "Li et al. 2019, arXiv:1903.06586",
    "splat": "Zhang et al. 2020, arXiv:2004.08955",
    "nl": "Wang et al. 2017, arXiv:1711.07971",
    "lambda": "Bello 2021, arXiv:2102.08602",
}
"""timm's name to the paper that the attention is from."""


def timm_builder(name: str) -> Builder | None:
    """Return what timm builds an attention with, or None if timm has none of that name.

    Example:
        >>> timm_builder("eca").__name__, timm_builder("nonesuch")
        ('EcaModule', None)
    """
    try:
        return get_attn(name)
    except AssertionError:  # timm's answer to a name that it does not know
        return None


for _name, _paper in TIMM.items():
    if (_builder := timm_builder(_name)) is not None:
        register(_name, paper=_paper, dims=(2,))(_builder)
