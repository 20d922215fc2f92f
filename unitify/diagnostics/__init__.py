"""What unitify says when something is wrong or was left alone.

Every message has a stable code, and four fields: *where*, *why*, *fix* and the class
docstring, which ``unitify explain U101`` prints (what it means, an example, a fix). Codes are
grouped by stage, one file a stage, and never used again for something else; all are found here. The
text of a class is static; what varies is held in typed fields, so that terminal, JSON and CI views
agree.
"""

from __future__ import annotations

from unitify.diagnostics.capturing import *
from unitify.diagnostics.casting import *
from unitify.diagnostics.checking import *
from unitify.diagnostics.diagnostic import *
from unitify.diagnostics.estimating import *
from unitify.diagnostics.files import *
from unitify.diagnostics.planning import *
from unitify.diagnostics.schemes import *
from unitify.diagnostics.use import *
from unitify.diagnostics.verifying import *


def all_diagnostics() -> dict[str, type[Diagnostic]]:
    """Every diagnostic class by its code, in order of the codes."""
    found = [
        item
        for item in globals().values()
        if isinstance(item, type) and issubclass(item, Diagnostic) and item.code
    ]
    return {item.code: item for item in sorted(found, key=lambda item: item.code)}
