"""Last stage: does the module compute bitwise what the model computes?"""
