"""A repository whose models have faults; tests copy it elsewhere and check it there."""
