"""Owns how text that clients chose is shown in a terminal: nothing of it can move the cursor or hide the rest."""


def printable(text: str, most: int = 200) -> str:
    """The text in one line, at most so many characters, with a `?` for each that does not print."""
    short = text if len(text) <= most else f"{text[: most - 1]}…"
    return "".join(one if one.isprintable() else "?" for one in short)
