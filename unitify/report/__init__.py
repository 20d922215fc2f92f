"""Reports of a conversion: for a terminal, a page and files."""
