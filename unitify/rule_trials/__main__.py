"""``python -m unitify.rule_trials docs/rules``: the rule table as pages of Markdown."""

import sys
from pathlib import Path

from unitify.rule_trials.page import write

write(Path(sys.argv[1]))
