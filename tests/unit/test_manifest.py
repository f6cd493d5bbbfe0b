"""What a report says made its results: the starts that computed something, not the one that wrote the report again."""

from posttrain.core.files import write_json
from posttrain.pipeline.manifest import made_by


def start(code: str, started: str) -> dict[str, object]:
    return {
        "code": code,
        "started": f"2026-01-01T{started}:00+00:00",
        "hardware": {"cores": len(code)},
        "packages": {"p": code},
    }


def test_later_starts_that_found_all_done_made_nothing(tmp_path):
    path = tmp_path / "manifest.json"
    write_json(path, {"starts": [start("a", "10:00"), start("bb", "11:00"), start("ccc", "12:00"), start("dddd", "13:00")]})
    times = [{"finished": f"2026-01-01T{time}:00+00:00"} for time in ("10:30", "12:00", "12:30")]
    made = made_by(path, times)
    assert made == {"code": "a, ccc", "hardware": {"cores": 3}, "packages": {"p": "ccc"}}
    assert made_by(path, times[:1])["code"] == "a"
    assert made_by(path, [])["code"] == "dddd"
    elsewhere = {"finished": "2026-01-01T12:10:00+00:00", "made_by": {**start("x, a", "09:00"), "started": None}}
    assert made_by(path, [*times, elsewhere])["code"] == "a, ccc, x"
    assert made_by(path, [times[0], elsewhere]) == {"code": "a, x", "hardware": {"cores": 4}, "packages": {"p": "x, a"}}
