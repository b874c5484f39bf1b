"""Tables as text, figures as JSON."""
import json, os, platform


def write(options, name, title, columns, rows, figures):
    """Prints a table and writes it, with `figures` beside it."""
    cells = [columns] + [[cell if isinstance(cell, str) else f"{cell:,.4g}" if isinstance(cell, float) else f"{cell:,}"
                          for cell in row] for row in rows]
    widths = [max(len(row[index]) for row in cells) for index in range(len(columns))]
    text = f"{title}\n" + "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths)).rstrip() for row in cells) + "\n"
    print(text, flush=True)
    with open(os.path.join(options.out, f"{name}.txt"), "w") as file:
        file.write(text)
    machine = {"processors": os.cpu_count(), "kernel": platform.release(), "load_before": os.getloadavg()}
    with open(os.path.join(options.out, f"{name}.json"), "w") as file:
        json.dump({"title": title, "machine": machine, "columns": columns, "rows": rows, "figures": figures}, file, indent=1)


def path(options, name):
    return os.path.join(options.out, name)
