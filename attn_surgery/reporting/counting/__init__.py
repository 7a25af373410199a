"""reporting.counting."""

from attn_surgery.reporting.counting.forward_work import Workload, count_copy, count_work
from attn_surgery.reporting.counting.operator_costs import Work
from attn_surgery.reporting.counting.saved_activations import count_saved_bytes

__all__ = ["Work", "Workload", "count_copy", "count_saved_bytes", "count_work"]
