"""Schemes side by side, and what unit scaling as published has to constrain: the study's code."""
