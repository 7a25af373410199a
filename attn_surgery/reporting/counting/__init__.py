"""What one forward pass costs, counted on the meta device: no numbers, no weights.

Multiply-adds, elementwise operations and bytes of every operator (operator_costs says what is
counted and what is not), block by block (forward_work), and the activations that training keeps
(saved_activations).
"""

from attn_surgery.reporting.counting.forward_work import Workload, count_copy, count_work
from attn_surgery.reporting.counting.operator_costs import Work
from attn_surgery.reporting.counting.saved_activations import count_saved_bytes

__all__ = ["Work", "Workload", "count_copy", "count_saved_bytes", "count_work"]
