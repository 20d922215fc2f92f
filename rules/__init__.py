"""The rule table: one TOML file a family of operations, one row an operation.

``docs/design.md`` describes the grammar; ``unitify.rules_table`` reads it.
"""
