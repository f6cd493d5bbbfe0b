"""Writing a report: `report.json`, `report.html`, `report.md` and `figures/`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.files import write_atomic, write_json
from .alignment_table import WIN_COLUMNS, objective_columns, objective_rows, win_rows
from .analysis import analyse
from .rung import LEVERS, Rung, oracle_rows
from .table import print_report
from .trained import Trained, columns, trained_facts, trained_rows

__all__ = ["Rung", "Trained", "build_report", "oracle_rows", "print_report"]


def build_report(
    title: str,
    rungs: Sequence[Rung],
    out: Path,
    *,
    meta: Mapping[str, Any],
    notes: Sequence[str],
    training: Sequence[Mapping[str, Any]] = (),
    trained: Sequence[Trained] = (),
    judged: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Compare the rungs on their common examples, write everything below `out` and return what `report.json` holds.

    The first rung of a task is what others of it are compared with unless they say `against`; oracle rungs are shown apart,
    and so is what training kept and reached (`training`) and what judges say (`judged`, as `alignment` returns it). Raises
    `DataError` when rungs of a task answer different examples, `ConfigError` for an unknown or repeated rung name.
    """
    report = analyse(title, rungs, meta=meta, notes=notes, training=training, judged=judged)
    report |= {"trained": trained_facts(trained)}
    from .alignment_figure import draw_alignment
    from .figures import draw_all  # matplotlib takes half a second
    from .proxy_gold import draw_courses
    from .retention_figure import draw_retention
    from .size_figure import draw_sizes

    drawn = [*draw_all(report, out / "figures"), *draw_retention(report, out / "figures")]
    drawn += [*draw_sizes(report, out / "figures")]
    drawn += [*draw_alignment(report, out / "figures"), *draw_courses(report, out / "figures")]
    write_atomic(out / "report.md", _rendered("report.md.j2", report, drawn))
    write_atomic(out / "report.html", _rendered("report.html.j2", report, drawn))
    write_json(out / "report.json", report)
    return report


def _rendered(template: str, report: Mapping[str, Any], drawn: Sequence[Any]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from . import words

    environment = Environment(
        loader=PackageLoader("posttrain.report", "templates"),
        autoescape=template.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    for name in ("accuracy", "duration", "interval", "percent", "points", "probability", "share", "si"):
        environment.filters[name] = getattr(words, name)
    labels = {rung["name"]: rung["label"] for table in (report, *report["others"]) for rung in table["rungs"]}
    by_lever = {lever: [rung for rung in report["rungs"] if rung["lever"] == lever] for lever in LEVERS}
    return environment.get_template(template).render(
        report=report,
        figures=drawn,
        labels=labels,
        levers=LEVERS,
        by_lever={lever: found for lever, found in by_lever.items() if any(rung["verdict"] for rung in found)},
        UNIT=words.UNIT,
        facts=_flat(report["meta"]),
        trained=(columns(report["trained"]), trained_rows(report["trained"])),
        **_judged(report["alignment"]),
    )


def _judged(found: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the tables of what judges say, as the templates take them."""
    several = (found or {}).get("objectives")
    return {
        "win_columns": WIN_COLUMNS,
        "win_rates": win_rows((found or {}).get("win_rates", ())),
        "objective_columns": objective_columns(several) if several else (),
        "objectives": objective_rows(several) if several else [],
    }


def _flat(meta: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what made the report as name and text."""
    told = []
    for name, value in meta.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{key} {item}" for key, item in value.items())
        elif isinstance(value, list | tuple):
            value = ", ".join(str(item) for item in value)
        told.append((name.replace("_", " "), str(value)))
    return told
