"""Numbers with their nouns, for whatever is said to people."""


def plural(count: int, noun: str) -> str:
    """A number with its noun: "1 epoch", "2 processes", "10,000 images"."""
    return f"{count:,} {noun}{'' if count == 1 else 'es' if noun.endswith('s') else 's'}"
