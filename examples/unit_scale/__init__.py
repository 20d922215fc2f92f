"""Unit scaling by unitify beside the published library: the same decoders, built both ways."""
