"""Put attention into networks that are already trained, without disturbing a single number."""

from typing import TYPE_CHECKING

from attn_surgery.errors import SurgeryError
from attn_surgery.names import imported_when_asked

if TYPE_CHECKING:
    from attn_surgery import choosing, finetune
    from attn_surgery.attention import available, register
    from attn_surgery.planning import Plan, Site
    from attn_surgery.reporting import Report, Row, report
    from attn_surgery.showing import Gallery, show
    from attn_surgery.suggesting import SiteScore, Suggestion, suggest
    from attn_surgery.surgery import (
        apply,
        compile_attention,
        inserted,
        load,
        plan,
        push_to_hub,
        remove,
        save,
        switch,
    )
    from attn_surgery.version import __version__ as __version__

__all__ = [
    "Gallery",
    "Plan",
    "Report",
    "Row",
    "Site",
    "SiteScore",
    "Suggestion",
    "SurgeryError",
    "apply",
    "available",
    "choosing",
    "compile_attention",
    "finetune",
    "inserted",
    "load",
    "plan",
    "push_to_hub",
    "register",
    "remove",
    "report",
    "save",
    "show",
    "suggest",
    "switch",
]

__getattr__ = imported_when_asked(
    __name__,
    {
        "attention": ["available", "register"],
        "choosing": [],
        "finetune": [],
        "planning": ["Plan", "Site"],
        "reporting": ["Report", "Row", "report"],
        "showing": ["Gallery", "show"],
        "suggesting": ["SiteScore", "Suggestion", "suggest"],
        "surgery": (
            "apply compile_attention inserted load plan push_to_hub remove save switch".split()
        ),
        "version": ["__version__"],
    },
)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
