"""What a summary says of rewards that were not measured."""

from cxrsynth.auditing.summary import unread_reports

MODELS = {name: {"backend": f"{name}-net"} for name in ("posture", "consistency")}


def test_a_reward_model_that_reads_no_report_is_named() -> None:
    rewards = {"posture": {"mean": -0.8}, "consistency": {"mean": None}}
    [said] = unread_reports(rewards, MODELS, ["one", "", "one"])
    assert said.startswith(
        "consistency was measured of no image, though they have 1 report; where consistency-net reads"
    )
    assert "--include-text" in said
    assert unread_reports(rewards, MODELS, ["", ""]) == []  # pictures without reports
    assert unread_reports({"posture": {"mean": 0.0}}, MODELS, ["one"]) == []
