"""Ways to choose sites that look at all of them: by stage, every n-th, by width.

What they return goes in as ``where``.
"""

from attn_surgery.planning import Choice, every, last_of_stage, matching, min_channels, stage

__all__ = ["Choice", "every", "last_of_stage", "matching", "min_channels", "stage"]
