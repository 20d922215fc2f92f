"""The rule table: one row an operation, in files by what operations do. File names mean nothing.

``docs/design.md`` describes the grammar; ``unitify.operations.rule_table`` reads it.
"""
