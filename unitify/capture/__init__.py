"""First stage: ``nn.Module`` and example inputs → ``Capture``, whole or island by island."""

from unitify.capture.whole import Capture, capture

__all__ = ["Capture", "capture"]
