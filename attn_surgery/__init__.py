"""Put attention into networks that are already trained, without disturbing a single number."""

from attn_surgery.attention import available, register
from attn_surgery.errors import SurgeryError
from attn_surgery.reporting import Report, Row, report
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
    "inserted",
    "plan",
    "register",
    "remove",
    "report",
]
