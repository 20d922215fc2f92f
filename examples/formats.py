"""Number formats: how much of a tensor each of them keeps, at which scale.

    python -m examples.formats

writes ``docs/results/formats.md`` and two plots beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from unitify.formats.signal_to_noise import NORMAL, GeneralizedNormal, best_scale, snr
from unitify.formats.table import E4M3, E5M2, FORMATS, FP16, INT8, Format

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "results"
#: log2 of the RMS at which curves are drawn.
OCTAVES = [x / 2 for x in range(-44, 45)]
COLORS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#777777")
#: E[x⁴]/E[x²]²: normal, Laplace, and tails as of activations with outliers.
KURTOSES = (3.0, 6.0, 30.0, 100.0, 600.0)


def plot(title: str, label: str, curves: dict[str, Sequence[tuple[float, float]]]) -> str:
    """Curves as an SVG drawing: decibels over an axis with one unit a tick."""
    left, top, width, height = 50, 30, 560, 300
    xs = [x for curve in curves.values() for x, _ in curve]
    low, high = min(xs), max(xs)
    ceiling = 10 * math.ceil(max(y for curve in curves.values() for _, y in curve) / 10)

    def at(x: float, y: float) -> str:
        right = left + width * (x - low) / (high - low)
        return f"{right:.1f},{top + height * (1 - max(y, 0.0) / ceiling):.1f}"

    lines = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 370" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="760" height="370" fill="white"/>',
        f'<text x="{left}" y="18" font-size="14">{title}</text>',
        f'<text x="{left + width / 2}" y="365" text-anchor="middle">{label}</text>',
    ]
    for y in range(0, ceiling + 1, 10):
        start, end = at(low, y), at(high, y)
        lines.append(f'<path d="M{start}L{end}" stroke="#ddd"/>')
        x, height_at = start.split(",")
        lines.append(f'<text x="{float(x) - 6}" y="{height_at}" text-anchor="end">{y}</text>')
    for tick in range(math.ceil(low), math.floor(high) + 1, max(1, round((high - low) / 11))):
        x = at(tick, 0).split(",")[0]
        lines.append(f'<text x="{x}" y="345" text-anchor="middle">{tick}</text>')
    for i, (name, curve) in enumerate(curves.items()):
        points, color = " ".join(at(x, y) for x, y in curve), COLORS[i % len(COLORS)]
        lines.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>')
        lines.append(f'<text x="620" y="{50 + 20 * i}" fill="{color}">{name}</text>')
    return "\n".join([*lines, "</svg>\n"])


def curve(format: Format) -> list[tuple[float, float]]:
    """Signal to noise of a normal distribution over log2 of its RMS."""
    return [(x, snr(format, 2.0**x)) for x in OCTAVES]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def format_rows() -> Iterable[list[str]]:
    """One row a format: its numbers, its decibels at RMS 1, and where it is within 3 dB of that."""
    for format in FORMATS.values():
        peak = max(y for _, y in curve(format))
        inside = [x for x, y in curve(format) if y > peak - 3]
        yield [
            format.name,
            format.paper or "—",
            f"{format.exponent_bits} / {format.mantissa_bits}",
            f"{format.min_exponent} … {format.max_exponent}",
            f"{format.largest:.5g}",
            f"{format.smallest_normal:.3g}",
            f"{format.smallest_subnormal:.3g}",
            f"{format.infinities} / {format.nans}",
            f"{snr(format, 1.0):.1f}",
            f"{min(inside):g} … {max(inside):g}",
        ]


def kurtosis_rows() -> Iterable[list[str]]:
    """One row a distribution: each format as stored at RMS 1, and at its best scale."""
    for kurtosis in KURTOSES:
        distribution = NORMAL if kurtosis == 3 else GeneralizedNormal.of_kurtosis(kurtosis)
        row = [f"{kurtosis:g}"]
        for format in (E4M3, E5M2, INT8):
            scale = best_scale(format, 1.0, distribution)
            if format is not INT8:
                row.append(f"{snr(format, 1.0, distribution):.1f}")
            row.append(f"{snr(format, 1 / scale, distribution):.1f} (2^{-int(math.log2(scale))})")
        yield row


def page() -> str:
    """The text of ``docs/results/formats.md``."""
    best = "best (RMS there)"
    return f"""# Formats

`python -m examples.formats`

Signal to noise of a cast, 10·log10(E[x²] / E[(Q(x) − x)²]), saturating, to nearest; by integrals
over the density, nothing is sampled.

## The table

Exponents are of normal numbers; decibels are of a normal distribution of RMS 1; the last column is
log2 of the RMS between which a normal distribution loses less than 3 dB against the peak (looked at
between 2^{OCTAVES[0]:g} and 2^{OCTAVES[-1]:g}).

{
        table(
            [
                "format",
                "Blake et al. 2023",
                "bits of exponent / mantissa",
                "exponents",
                "largest",
                "smallest normal",
                "smallest subnormal",
                "inf / NaN codes",
                "dB at RMS 1",
                "within 3 dB",
            ],
            format_rows(),
        )
    }

## Why RMS 1

![Signal to noise over RMS](formats_rms.svg)

A float keeps its signal over as many octaves as it has exponents, and RMS 1 is near the middle of
each of them: E4M3 has 7 octaves above and 5 below. The best scale of a normal distribution is
within 0.1 dB of RMS 1 for every float here. INT8 has one good RMS, and loses 6 dB with every octave
below it.

## Outliers: FP8 against INT8

Distributions of RMS 1 with longer and longer tails (density ∝ exp(−|x/α|^p), p from the kurtosis):
decibels as stored, and cast at the best power of two.

{
        table(
            [
                "kurtosis",
                "E4M3 at RMS 1",
                f"E4M3 {best}",
                "E5M2 at RMS 1",
                f"E5M2 {best}",
                f"INT8 {best}",
            ],
            kurtosis_rows(),
        )
    }

![Signal to noise over kurtosis](formats_kurtosis.svg)

INT8 is the better one for normal tensors, if its scale is found; E4M3 from a kurtosis of about
{crossing():.0f} on, and its scale need not be found.
"""


def by_kurtosis(format: Format) -> list[tuple[float, float]]:
    """Signal to noise at the best scale over log10 of the kurtosis."""
    found = []
    for i in range(0, 30):
        kurtosis = 3 * 10 ** (i / 12)
        distribution = GeneralizedNormal.of_kurtosis(kurtosis)
        scale = best_scale(format, 1.0, distribution)
        found.append((math.log10(kurtosis), snr(format, 1 / scale, distribution)))
    return found


def crossing() -> float:
    """The kurtosis at which E4M3 overtakes INT8, both at their best scales."""
    pairs = zip(by_kurtosis(E4M3), by_kurtosis(INT8), strict=True)
    return 10 ** next(x for (x, e4m3), (_, int8) in pairs if e4m3 > int8)


def main() -> None:
    shown = [E4M3, E5M2, FORMATS["e4m3fnuz"], INT8, FORMATS["bf16"], FP16]
    rms = {f.name: curve(f) for f in shown}
    kurtosis = {f.name: by_kurtosis(f) for f in (E4M3, E5M2, INT8)}
    plots = {
        "formats_rms.svg": plot("SNR of a normal distribution, dB", "log2 of its RMS", rms),
        "formats_kurtosis.svg": plot(
            "SNR at the best scale, dB", "log10 of the kurtosis", kurtosis
        ),
    }
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, drawing in plots.items():
        (FOLDER / name).write_text(drawing, "utf-8")
    (FOLDER / "formats.md").write_text(page(), "utf-8")


if __name__ == "__main__":
    main()
