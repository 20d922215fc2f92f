"""The rule table: one row an operation, in files by what operations do. File names mean nothing.

``docs/design.md`` describes the grammar; ``unitify.rulebook.rule_table`` reads it.
"""
