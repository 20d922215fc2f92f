"""Number formats as data, rounding to them, and the signal to noise that remains."""

from unitify.formats.signal_to_noise import best_scale, snr
from unitify.formats.table import FORMATS, Format, quantize

__all__ = ["FORMATS", "Format", "best_scale", "quantize", "snr"]
