"""Numbers with their nouns and units, for whatever is said to people."""


def plural(count: int, noun: str) -> str:
    """A number with its noun: "1 epoch", "2 processes", "10,000 images"."""
    return f"{count:,} {noun}{'' if count == 1 else 'es' if noun.endswith('s') else 's'}"


def percent(share: float) -> str:
    """A share as it was given: 0.95 is "95%", 0.975 is "97.5%"."""
    return f"{100 * share:.6g}%"
