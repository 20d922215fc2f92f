"""Facts about operations: the rule table, and a row of it applied to a node of a graph."""
