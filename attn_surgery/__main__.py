"""``python -m attn_surgery``, the same as the command ``attn-surgery``."""

import sys

from attn_surgery.cli import main

if __name__ == "__main__":
    sys.exit(main())
