"""Copy measured results into the documentation: every number there comes from a file that a command wrote.

    python benchmarks/publish.py runs/quickstart runs/inference-methods

Fills the marked places of README.md and docs/ from the runs' reports and from benchmarks/results/*.json.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from pathlib import Path
from typing import Any

from posttrain.report.curve_words import saving_sentence

ROOT = Path(__file__).resolve().parents[1]
FIGURES = {
    "ladder": "Accuracy of every rung with its 95% interval",
    "accuracy_by_cost": "Accuracy against cost per query",
    "gains": "What each lever gained, with 95% intervals",
    "gain_by_size": "Accuracy before and after training, by model size",
    "retention": "Each general task before and after, with 95% intervals",
    "win_rates": "How often each side's replies are preferred, with 95% intervals",
    "objectives": "Several objectives at once",
}
MEASURED: dict[str, list[tuple[str, list[str]]]] = {  # method -> runs with their rungs
    "zero_shot": [("quickstart", ["zero-shot"])],
    "few_shot": [("quickstart", ["few-shot"])],
    "few_shot_cot": [("quickstart", ["chain-of-thought"])],
    "zero_shot_cot": [("inference-methods", ["zero-shot-cot"])],
    "greedy": [("quickstart", ["zero-shot", "sft-greedy"])],
    "sample": [("inference-methods", ["sample"])],
    "self_consistency": [("quickstart", ["self-consistency", "sft-self-consistency"])],
    "best_of_n": [
        ("inference-methods", ["best-of-n", "best-of-n-weighted"]),
        ("judgements", ["best-likelihood", "best-reward", "weighted-reward", "best-32", "best-128"]),
    ],
    "sft": [("quickstart", ["sft-greedy"])],
    "dpo": [
        ("feedback", ["dpo"]),
        ("judgements", ["dpo", "ipo", "orpo", "simpo"]),
        ("preference", ["dpo", "ipo", "orpo", "simpo"]),
    ],
    "kto": [("judgements", ["kto"]), ("preference", ["kto"])],
    "preference_sft": [("judgements", ["chosen"]), ("preference-sft", ["chosen", "best", "ranked", "weighted"])],
    "scored_responses": [("preference-sft", ["best", "weighted"])],
    "verified_traces": [
        ("feedback", ["rft-greedy"]),
        ("rlhf", ["rft-greedy"]),
        ("self-taught", ["test-1", "test-2"]),
    ],
    "distill": [("distillation", ["token", "on-policy", "on-policy-forward"])],
    "distilled": [("distillation", ["sequence"])],
    "mixed": [("domain", ["tuned-replay"])],
    "worked_examples": [("quickstart", ["sft-greedy"])],
    "grpo": [
        ("feedback", ["rft-greedy", "grpo"]),
        ("rlhf", ["grpo"]),
        ("r1", ["rl-1-test", "rl-2-test"]),
        ("grpo", ["rft-greedy", "grpo-greedy"]),
    ],
    "oreo": [("oreo", ["rejection", "offline", "value-beam", "online-1"])],
    "questions": [("r1-zero", ["zero-test"])],
    "verified_pairs": [("feedback", ["dpo"]), ("judgements", ["chosen", "dpo"]), ("preference", ["chosen", "dpo"])],
    "instructed": [("searches", ["instructed"])],
    "confidence_sampling": [("searches", ["confidence"])],
    "verified_search": [("searches", ["verified"])],
    "self_refine": [("searches", ["refine"])],
    "budget_forcing": [("searches", ["forcing"])],
    "beam_search": [("searches", ["beam"])],
    "diverse_tree_search": [("searches", ["dvts"])],
    "particle_filtering": [("searches", ["particles"])],
    "tree_of_thoughts": [("searches", ["tot"])],
    "mcts": [("searches", ["mcts"])],
    "reward_model": [
        ("judgements", ["best-reward", "weighted-reward", "best-128"]),
        ("rlhf", ["grpo"]),
        ("feedback", ["best-reward"]),
    ],
    "ppo": [("rlhf", ["ppo", "grpo"])],
    "process_reward": [("process-reward", ["best-checked"])],
    "checked_steps": [("process-reward", ["best-checked"])],
    "ai_feedback": [("ai-feedback", ["dpo-ai", "dpo-gold"])],
    "verdict_examples": [("ai-feedback", ["dpo-ai"])],
}
PLACES = dict.fromkeys(
    (
        "adapters",
        "cot-vs-direct",
        "dialogue",
        "distillation",
        "domain",
        "instruction-tuning",
        "preference-sft",
        "self-taught",
        "students",
    ),
    "finetuning",
) | {
    "r1": "rl",
    "r1-steps": "rl",
    "r1-zero": "rl",
    "grpo": "rl",
    "process-reward": "preference",
    "preference": "preference",
    "preference-rates": "preference",
    "starts": "preference",
    "early": "preference",
    "feedback": "preference",
    "judgements": "preference",
    "ai-feedback": "preference",
    "rlhf": "rl",
    "oreo": "rl",
}  # run -> its folder below docs/results
PAGES = {  # run -> what comes first
    "searches": "[Beside all other searches](../results/searches.md). ",
    "preference-sft": "[All ways](../results/finetuning/preference-sft.md). ",
    "self-taught": "[Round by round](../results/finetuning/self-taught.md). ",
    "distillation": "[All ways, from a teacher that is right](../results/finetuning/distillation.md). ",
    "feedback": "[What feedback on own replies is worth](../results/preference/feedback.md). ",
    "preference": "[The same pairs for every method](../results/preference/preference.md). ",
    "judgements": "[Best of N under a reward model, N up to 128, and the DPO family](../results/preference/judgements.md). ",
    "ai-feedback": "[A taught labeller, its bias, and DPO on its labels](../results/preference/ai-feedback.md). ",
    "grpo": "[From one SFT start](../results/rl/grpo.md); [RL alone, +22.4 points](../results/rl/r1-zero.md). ",
    "rlhf": "[RLHF with a learned reward, and the run before, in which GRPO gained 5.0](../results/rl/rlhf.md). ",
    "oreo": "[Offline, as the guide of a search, and online](../results/rl/oreo.md). ",
    "r1": "[DeepSeek-R1's pipeline in small, stage by stage](../results/rl/r1.md). ",
    "r1-zero": "[RL alone from an instruct model](../results/rl/r1-zero.md). ",
    "process-reward": "[The first wrong step is found, F1 0.917, and which of 8 replies is best is not]"
    "(../results/preference/process-reward.md). ",
    "domain": "[With retention; no better than one answer to every question](../results/finetuning/domain.md). ",
}
BESIDE = {  # run -> files of its stages that its page speaks of, and what they are called there
    "rlhf": {"*-train-ppo/rollouts.jsonl": "rollouts-ppo.jsonl", "*-train-grpo/rollouts.jsonl": "rollouts-grpo.jsonl"},
    "ai-feedback": {"*-labels/facts.json": "labels.json", "*-verdicts/counts.json": "verdicts.json"},
}
REPLAYS = ("test_time", "test_time_needle")
REPLAYED = {  # method -> findings of the replays
    "adaptive_consistency": ["adaptive"],
    "compute_optimal": ["compute_optimal", "compute_optimal_judged"],
}


def percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def told(report: dict[str, Any], name: str) -> str:
    """One sentence of a rung: its accuracy, then the report's own verdict."""
    rung = next(rung for rung in report["rungs"] if rung["name"] == name)
    low, high = rung["ci95"]
    said = f"**{rung['label']}**: {percent(rung['accuracy'])} [{percent(low)}, {percent(high)}], n = {rung['n']}."
    return f"{said} {rung['verdict']}" if rung["verdict"] else said


def between(text: str, marker: str, content: str) -> str:
    begin, end = f"<!-- {marker}:begin -->", f"<!-- {marker}:end -->"
    if begin not in text or end not in text:
        raise SystemExit(f"no markers {begin} … {end}")
    return text.partition(begin)[0] + f"{begin}\n{content.strip()}\n{end}" + text.partition(end)[2]


def ladder(report: dict[str, Any]) -> str:
    lines = [
        "| rung | lever | accuracy | 95% interval | points gained | p (Holm) | tokens/query | FLOPs/query | FLOPs once |",
        "|---|---|---:|---|---:|---:|---:|---:|---:|",
    ]
    for rung in [*report["rungs"], *report["oracles"]]:
        low, high = rung["ci95"]
        difference = rung.get("difference") or {}
        gain = f"{100 * difference['difference']:+.1f}" if difference else ""
        p = f"{difference['p_holm']:.2g}" if difference.get("p_holm") is not None else ""
        once = rung["fixed"]["flops"]
        cells = [
            rung["label"], rung["lever"], percent(rung["accuracy"]), f"{percent(low)} to {percent(high)}", gain, p,
            f"{rung['per_query']['tokens']:.0f}", f"{rung['per_query']['flops']:.2g}", f"{once:.2g}" if once else "",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def speed() -> str:
    lines = ["| benchmark | peer, at its best setting | ratio (least to greatest) | hardware |", "|---|---|---|---|"]
    results = ROOT / "benchmarks" / "results"
    path = results / "generate_vs_transformers.json"
    if path.is_file():
        found = json.loads(path.read_text())
        ratio = found["ratio_to_better_peer"]
        hardware = found["hardware"]
        lines.append(
            f"| generating 64 samples of varied length, bf16 | the better of `generate` and `generate_batch` | "
            f"{ratio['median']:.2f}× ({ratio['min']:.2f} to {ratio['max']:.2f}) | "
            f"{hardware['processor']}, {hardware['cores']} cores |"
        )
    for mode, unit in (
        ("sft", "SFT on GSM8K text"), ("dpo", "DPO on GSM8K text"), ("reward", "reward model on GSM8K text"),
        ("grpo", "GRPO on GSM8K questions, sampling included"),
    ):  # fmt: skip
        whole, quick = results / f"train_vs_trl_{mode}.json", results / f"train_vs_trl_{mode}_quick.json"
        found_of = {path: json.loads(path.read_text()) for path in (whole, quick) if path.is_file()}
        if len(found_of) == 2 and found_of[quick]["date"] < found_of[whole]["date"]:
            del found_of[quick]
        for path, found in found_of.items():
            times = len(found["rounds"]["posttrain"])
            quick_of = f"{unit} (quick: {'one round' if times == 1 else f'{times} rounds'}, small search)"
            what = unit if path == whole else quick_of
            summary, hardware = found["summary"], found["hardware"]
            peers = {"": summary, " with float32 weights and moments, autocast": summary.get("trl_equal_types")}
            for words, told in peers.items():
                if told is not None:
                    low, high = told["speed_ratio_range"]
                    lines.append(
                        f"| {what}, bf16; peak memory {told['memory_ratio']:.2f}× | TRL {found['versions']['trl']}{words} | "
                        f"{told['speed_ratio']:.2f}× ({low:.2f} to {high:.2f}) | "
                        f"{hardware['processor']}, {hardware['threads']} threads |"
                    )
    return "\n".join(lines) + "\n\nThe files in `benchmarks/results/` name the settings, versions and commit."


def replayed(findings: list[str]) -> str | None:
    """What the replays on pools found, task by task; None where they have not been run."""
    said = []
    for folder in REPLAYS:
        path = ROOT / "docs" / "results" / folder / "replays.json"
        if path.is_file():
            tasks = json.loads(path.read_text())["tasks"]
            said.append(f"[Replayed on pools of samples](../results/{folder}/index.md).")
            said += [
                f"**{one['name']}** (n = {one['questions']}): {saving_sentence(one[finding], several=False)}"
                for finding in findings
                for one in tasks
            ]
    return " ".join(said) or None


def said_of(run: str, rungs: list[str]) -> str:
    """What a published run says of some of its rungs, behind a link to its page."""
    report = json.loads((ROOT / "docs" / "results" / PLACES.get(run, "") / run / "report.json").read_text())
    return PAGES.get(run, "") + " ".join(told(report, rung) for rung in rungs)


def fill(method: str, said: str) -> None:
    """Put a measured result behind a method's marker, in place of an earlier one or of "Not measured yet"."""
    path = ROOT / "docs" / "methods" / f"{method}.md"
    marker = f"<!-- measured:{method} -->"
    text, found = re.subn(rf"{marker}.*(\n+Not measured yet.*)?", lambda _: f"{marker} {said}", path.read_text())
    if not found:
        raise SystemExit(f"{path}: no marker {marker}")
    path.write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="*", help="run folders; none: the table of benchmarks alone")
    folders = parser.parse_args().runs
    reports = {}
    for folder in folders:
        recipe = re.search(r"^name: (\S+)", (folder / "resolved.yaml").read_text(), re.MULTILINE)
        assert recipe is not None
        reports[recipe[1]] = json.loads((folder / "report.json").read_text())
        place = ROOT / "docs" / "results" / PLACES.get(recipe[1], "")
        target = place / recipe[1]
        target.mkdir(parents=True, exist_ok=True)
        watched = [stage for stage in reports[recipe[1]]["trained"] if stage.get("course")]
        figures = FIGURES | {
            f"course_{one['name']}": f"{one['label']}: reward and {one['course']['gold']} against the KL from the start"
            for one in watched
        }
        drawn = [name for name in figures if (folder / "figures" / f"{name}.png").is_file()]
        for figure in drawn:
            shutil.copy(folder / "figures" / f"{figure}.png", target / f"{figure}.png")
        shutil.copy(folder / "report.json", target / "report.json")
        for pattern, name in BESIDE.get(recipe[1], {}).items():
            for file in folder.glob(pattern):
                shutil.copy(file, target / name)
        page = place / f"{recipe[1]}.md"
        body = (folder / "report.md").read_text()
        body = re.sub(r"^# .*\n", "", body).replace("\n## ", "\n### ")
        body = re.sub(r"!\[[^\]]*\]\([^)]*\)\n*", "", body)
        text = between(page.read_text(), "report", body)
        images = "\n\n".join(f"![{alt}]({recipe[1]}/{name}.png)" for name, alt in figures.items() if name in drawn)
        page.write_text(re.sub(r"<!-- figures -->(\n+!\[.*\]\(.*\))*", f"<!-- figures -->\n\n{images}", text))
    readme = ROOT / "README.md"
    text = between(readme.read_text(), "benchmarks", speed())
    if "quickstart" in reports:
        text = between(text, "quickstart", ladder(reports["quickstart"]) + f"\n\n{reports['quickstart']['headline']}")
    readme.write_text(text)
    for method, runs in MEASURED.items():
        if any(run in reports for run, _ in runs):
            fill(method, " ".join(said_of(run, rungs) for run, rungs in runs))
    for method, findings in REPLAYED.items():
        if said := replayed(findings):
            fill(method, said)
    print("published:", ", ".join(reports) or "the table of benchmarks")


if __name__ == "__main__":
    main()
