"""Put attention into networks that are already trained, without disturbing a single number."""

import attn_surgery.moved  # noqa: F401
import attn_surgery.finetune as finetune
from attn_surgery.attention import available, register
from attn_surgery.errors import SurgeryError
from attn_surgery.planning import Plan, Site
from attn_surgery.reporting import Report, Row, report
from attn_surgery.surgery import apply, inserted, load, plan, remove, save

__all__ = [
    "Plan",
    "Report",
    "Row",
    "Site",
    "SurgeryError",
    "apply",
    "available",
    "finetune",
    "inserted",
    "load",
    "plan",
    "register",
    "remove",
    "report",
    "save",
]
