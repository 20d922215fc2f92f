"""``python -m unitify.rule_trials``: the rule table as one page of Markdown."""

from unitify.rule_trials.page import page

print(page(), end="")
