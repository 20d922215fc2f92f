"""What is known of operations: the rule table, and a row read at a node of a graph."""
