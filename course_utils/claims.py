"""Claims: what a lecture says, checked by code each time it runs."""


def claim(text: str, holds: bool, *, recorded: bool = False) -> None:
    """Prints ``✔ text`` when the claim holds and ``✘ text`` when it does not; ``recorded`` says that it was judged on the recorded full run.

    It never raises: a lecture runs to its end. ``course run`` counts the marks and nbval compares them, so a false claim still fails the
    build. The text must not hold numbers that move with hardware, scale or data set.
    """
    print(f"{'✔' if holds else '✘'} {text}{' (recorded)' if recorded else ''}", flush=True)


def clearly_more(a: float, b: float, n: int) -> bool:
    """Whether share ``a`` exceeds share ``b``, each measured on ``n`` images, by three standard errors of their difference."""
    return bool(a - b > 3 * ((a * (1 - a) + b * (1 - b)) / n) ** 0.5)
