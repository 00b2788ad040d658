"""The report of three sessions with known records."""

from __future__ import annotations

from benchmark.report.run_report import make_report, print_report

SETTINGS = {"suite": "studio", "editor": "pipeline", "protocol": "undo", "editor_settings": {"model": "abc"}}


def turn(kind: str, failed: str = "", asked=(), wrong=(), drift=None, not_applicable=False) -> dict:
    verdict = {name: name != failed for name in ("followed", "preservation", "identity")}
    attributes = {"asked": dict.fromkeys(asked, "new"), "wrong": dict.fromkeys(wrong, "other")}
    return {
        "kind": kind,
        "not_applicable": not_applicable,
        **verdict,
        **attributes,
        "damage": 0.01,
        "likeness": 0.9,
        "drift": drift and {"l1": drift},
    }


def session(turns: list[dict], attributes: tuple[str, ...], seconds: float) -> dict:
    probes = [{"what": "back", "turn": 3, "attributes": list(attributes)}]
    cost = {"seconds": [seconds] * 3, "cache_bytes": [1, 2, 2], "peak_bytes": int(1000 * seconds)}
    return {"turns": turns, "probes": probes, "cost": cost}


RECORDS = [
    session(
        [
            turn("recolour", asked=["colour"], drift=0.2),
            turn("move", "identity", asked=["place"], wrong=["colour"]),
            turn("undo", asked=["place"], drift=0.4),
        ],
        ("place",),
        1,
    ),
    session(
        [
            turn("null", drift=0.4),
            turn("move", asked=["place"]),
            turn("undo", "followed", asked=["place", "size"], wrong=["size"]),
        ],
        ("place", "size"),
        2,
    ),
    session(
        [
            turn("recolour", "preservation", asked=["colour"], wrong=["colour"], drift=0.3),
            turn("sign", asked=["sign"]),
            turn("undo", "preservation", asked=["size"], wrong=["sign"]),
        ],
        ("size",),
        6,
    ),
]


NOT_APPLICABLE = session(
    [turn("recolour", "followed", asked=["colour"]), turn("undo", asked=["colour"], not_applicable=True), turn("null")],
    (),
    1,
)


def means(intervals: list) -> list:
    return [interval and round(interval["mean"], 3) for interval in intervals]


def test_report_counts_follow_from_the_records(capsys):
    report = make_report(SETTINGS, RECORDS)
    by_turn = report["by_turn"]
    assert report["model"] == "abc" and report["settings"] == SETTINGS
    assert means(by_turn["followed"]) == [1, 1, 0.667]
    assert means(by_turn["preservation"]) == [0.667, 1, 0.667]
    assert means(by_turn["identity"]) == [1, 0.667, 1]
    assert means(by_turn["success"]) == [0.667, 0.667, 0.333]
    assert means(by_turn["SR@k"]) == [0.667, 0.333, 0]
    assert report["first_failure"] == {"by_turn": [1, 1, 1], "never": 0, "median": 2}
    # turn 2: colour wrong in the first session, nothing asked before in the second, right in the third; turn 3: colour
    # right, no fact of its own left, one of two
    assert means(by_turn["persistence"]) == [None, 0.5, 0.75]
    assert means([report["overall"]["success"], report["overall"]["success_of_edits"]]) == [0.556, 0.5]
    kinds = report["by_kind"]
    assert list(kinds) == ["recolour", "move", "sign", "undo", "null"]
    assert kinds["recolour"]["turn 1"]["count"] == 2 and kinds["recolour"]["turn 1"]["success"] == 0.5
    assert kinds["undo"]["turn 1"] == {"count": 0} and kinds["undo"]["all turns"]["followed"] == 0.6667
    (probe,) = report["probes"]
    assert (probe["what"], probe["turn"], probe["sessions"]) == ("back", 3, 3)
    assert means([probe["success"], probe["accuracy"]]) == [0.333, 0.667]
    assert means(by_turn["drift: l1"]) == [0.3, None, 0.4]
    assert report["cost"] == {
        "seconds_per_turn": 3.0,
        "seconds_by_turn": [2.0, 2.0, 2.0],
        "cache_bytes_by_turn": [1, 2, 2],
        "peak_bytes": 6000,
    }
    print_report(report)
    out = capsys.readouterr().out
    assert "| success | 66.7% | 66.7% | 33.3% |" in out and "| persistence | - | 50.0% | 75.0% |" in out
    assert "| 3 | back | 3 | 33.3%" in out and "| undo | - | 33.3% of 3 |" in out


def test_probe_counts_only_where_applicable():
    """Not where a no-op would be right, nor for an earlier edit that was never done."""
    lasting = {"probes": [{"what": "colour of turn 1", "turn": number, "attributes": ["colour"]} for number in (2, 3)]}
    lost, never = (
        session([turn("recolour", asked=["colour"], wrong=first), turn("move"), turn("sign", wrong=["colour"])], (), 1)
        for first in ([], ["colour"])
    )
    not_applicable = session(
        [turn("null"), turn("null"), turn("undo", asked=["place"], not_applicable=True)], ("place",), 1
    )
    rows = make_report(SETTINGS, [lost | lasting, never | lasting, not_applicable])["probes"]
    assert [(row["turn"], row["sessions"], row["accuracy"] and row["accuracy"]["mean"]) for row in rows] == [
        (3, 0, None),
        (2, 1, 1),
        (3, 1, 0),
    ]


def test_turns_not_applicable_neither_succeed_nor_fail():
    report = make_report(SETTINGS, [*RECORDS, NOT_APPLICABLE])
    by_turn = report["by_turn"]
    assert report["not_applicable_by_turn"] == [0, 1, 0]
    assert means(by_turn["success"]) == [0.5, 0.667, 0.5] and means(by_turn["identity"])[1] == 0.667
    assert report["overall"]["success_of_edits"]["mean"] == 0.4444  # 4 of 9
    assert report["by_kind"]["undo"]["all turns"]["count"] == 3
    assert make_report(SETTINGS, [NOT_APPLICABLE])["by_turn"]["success"][1] is None
