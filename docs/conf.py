"""How the site is built: ``python -m sphinx -W -n docs SITE``.

Sphinx with MyST: the pages stay Markdown, the reference is made of the docstrings, every reference
that leads nowhere is an error, and nothing is fetched while it builds.
"""

import re
from typing import Any

from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx

project = "attn_surgery"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

smartquotes_action = "D"  # dashes; quotes stay as they are typed

html_theme = "furo"
html_title = "attn_surgery"
html_copy_source = False

myst_heading_anchors = 4
suppress_warnings = ["myst.header"]  # a page may go from ## to ####

add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
default_role = "literal"
maximum_signature_line_length = 80
python_use_unqualified_type_names = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!attn_surgery).*"),  # what others document
    ("py:class", r".*\.(Again|B|Candidate|FrozenStatistics|Input|T)"),  # not for users
]


def setup(app: Sphinx) -> dict[str, Any]:
    """Let drawings in Mermaid stand as they are written (GitHub draws them), and links lead on."""
    app.add_lexer("mermaid", TextLexer)
    app.connect("source-read", _hand_over_what_is_no_page)
    return {"parallel_read_safe": True}


def _hand_over_what_is_no_page(app: Sphinx, name: str, source: list[str]) -> None:
    """Make a link to Markdown beside this folder one to the file itself."""
    source[0] = re.sub(r"\]\((\.\./[^)#]+\.md)(#[^)]*)?\)", r"](path:\1)", source[0])
