"""The rule table for people: listed, verified on samples, extended."""
