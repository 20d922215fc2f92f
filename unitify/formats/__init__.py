"""Number formats as data, rounding to them, and what they leave of a signal."""

from unitify.formats.signal_to_noise import best_scale, snr
from unitify.formats.table import FORMATS, Format, quantize

__all__ = ["FORMATS", "Format", "best_scale", "quantize", "snr"]
