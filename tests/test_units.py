"""How numbers are printed: counts, bytes, times."""

from __future__ import annotations

import pytest

from llamaseek import units


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (7, "7"),
        (512, "512"),
        (128_256, "128,256"),
        (999_999, "999,999"),
        (2_743_021, "2.74M"),
        (30_840_000, "30.8M"),
        (405_853_388_800, "406B"),
        (1e12, "1T"),
    ],
)
def test_counts(number: float, text: str) -> None:
    assert units.count(number) == text


def test_counts_with_four_figures() -> None:
    assert [units.count(n, 4) for n in (15.6e12, 30.84e6, 45.25)] == ["15.6T", "30.84M", "45.25"]


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (16_060_522_496, "16.1 GB"), (8e17, "800 PB")],
)
def test_bytes_are_decimal(number: float, text: str) -> None:
    assert units.size(number) == text


def test_times() -> None:
    assert [units.seconds(s) for s in (0.0085, 0.25, 5.76, 1234.5)] == [
        "8.50 ms",
        "250 ms",
        "5.8 s",
        "1,234.5 s",
    ]
