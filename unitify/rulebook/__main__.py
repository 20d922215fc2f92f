"""``python -m unitify.rulebook``: the rule table as one page of Markdown."""

from unitify.rulebook.page import page

print(page(), end="")
