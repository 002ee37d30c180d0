"""Numbers of bytes for people."""

from fqs_jax.runtime import sizes


def test_sizes_in_decimal_units():
    shown = [sizes.shown(count) for count in (0, 999, 1000, 12_345_678, 28e9, 3e15)]
    assert shown == ["0 bytes", "999 bytes", "1.0 kB", "12.3 MB", "28.0 GB", "3,000.0 TB"]
