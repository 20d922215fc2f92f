"""``python -m unitify.diagnostics``: every diagnostic as one page of Markdown."""

from __future__ import annotations

import inspect

from unitify.diagnostics import all_diagnostics


def page() -> str:
    """The text of ``docs/codes.md``."""
    parts = [
        "# Codes\n",
        "Written by `make docs` from the docstrings in `unitify/diagnostics/`; "
        "`unitify explain CODE` prints one of them. The [glossary](glossary.md) has the words.\n",
    ]
    for code, found in all_diagnostics().items():
        text = (inspect.getdoc(found) or "").replace("``", "`")
        parts.append(f"## {code} {found.__name__}\n\n{text}\n\nMessage: `{found.why}`\n")
    return "\n".join(parts)


if __name__ == "__main__":
    print(page(), end="")
