"""Put attention into networks that are already trained, without disturbing a single number."""

import attn_surgery.finetune as finetune
from attn_surgery.attention import available, register
from attn_surgery.errors import SurgeryError
from attn_surgery.reporting import report
from attn_surgery.results import Report
from attn_surgery.rows import Row
from attn_surgery.saving import load, save
from attn_surgery.sites import Plan, Site
from attn_surgery.surgery import apply, inserted, plan, remove

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
