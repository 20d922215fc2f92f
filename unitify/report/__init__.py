"""What a conversion did, for people and for files."""
