def table(header, lines):
    """Return a Markdown table: `header`, the columns' names, and a list of cells for each line."""
    cells = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in cells)


def among(low, high):
    """Return the lowest and highest of a run's ratios as text."""
    return f"{low:.2f} to {high:.2f}"
