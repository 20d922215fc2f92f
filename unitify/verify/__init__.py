"""Last stage: is the result bitwise the original?"""
