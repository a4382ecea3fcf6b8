"""Benchmarks by the names they are asked for: which task of lm-eval's, its shots and the source."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Protocol:
    """A benchmark by name: lm-eval's task, its shots where not the task's own, and the source.

    `folder` of lm-eval's tasks holds it. `chance` is the share that guessing gets right where the
    option is generated; where options are scored the items tell it. With `continues` the prompt is
    code that the model goes on with: as a chat's it gets prose, which ends at the stop strings.
    """

    task: str
    folder: str
    shots: int | None
    source: str
    chance: float = 0.0
    continues: bool = False


META = "llama-models eval_details.md"
LECTURE = {
    "mmlu": Protocol("mmlu", "mmlu/default", 5, "lecture; Meta, base models: NLL of letters"),
    "gpqa": Protocol("gpqa_main_zeroshot", "gpqa/zeroshot", 0, "lecture; letters scored"),
    "humaneval": Protocol("humaneval", "humaneval", 0, "lecture; Chen et al. 2021", continues=True),
    "gsm8k": Protocol("gsm8k_cot", "gsm8k", 8, "lecture; shots of Wei et al. 2022"),
    "math": Protocol("minerva_math", "minerva_math", 4, "lecture; Lewkowycz et al. 2022"),
}
"""The lecture's columns."""

OTHERS = {
    "math500": Protocol("minerva_math500", "minerva_math", 4, "Lightman et al. 2023"),
    "mmlu_cloze": Protocol(
        "mmlu_continuation", "mmlu/continuation", 0, "answer texts scored, no options shown"
    ),
    "mmlu_llama": Protocol(
        "mmlu_llama", "llama3/instruct/mmlu", 5, f"{META}: letter generated", chance=0.25
    ),
    "mmlu_cot_llama": Protocol("mmlu_cot_llama", "llama3/instruct/mmlu_cot", 0, META, chance=0.25),
    "mmlu_pro_llama": Protocol("mmlu_pro_llama", "llama3/instruct/mmlu_pro", 5, META, chance=0.1),
    "arc_challenge_llama": Protocol(
        "arc_challenge_llama", "llama3/instruct/arc_challenge", 0, META, chance=0.25
    ),
    "gsm8k_llama": Protocol("gsm8k_llama", "llama3/instruct/gsm8k", 8, META),
    "humaneval_llama": Protocol("humaneval_instruct", "humaneval", 0, META),
    "gpqa_llama": Protocol(
        "gpqa_llama", "", 0, f"{META}: main set, CoT, 2,048 tokens", chance=0.25
    ),
    "math_llama": Protocol("math_llama", "", 0, f"{META}: CoT, \\boxed, no judge model"),
    "mmlu_deepseek": Protocol("mmlu", "mmlu/default", 5, "DeepSeek-V3 §4.4: perplexity"),
    "gsm8k_deepseek": Protocol("gsm8k_cot", "gsm8k", 8, "DeepSeek-V3 §4.4: 8-shot generation"),
    "math_deepseek": Protocol("minerva_math", "minerva_math", 4, "DeepSeek-V3 §4.4"),
    "gpqa_deepseek": Protocol(
        "gpqa_diamond_cot_zeroshot",
        "gpqa/cot_zeroshot",
        0,
        "DeepSeek-V3 §5.3: diamond, CoT",
        chance=0.25,
    ),
    "humaneval_deepseek": Protocol("humaneval", "humaneval", 0, "DeepSeek-V3 §4.4", continues=True),
    "arc_easy": Protocol("arc_easy", "arc", 0, "lm-eval: answer texts scored"),
    "arc_challenge": Protocol("arc_challenge", "arc", 0, "lm-eval: answer texts scored"),
    "hellaswag": Protocol("hellaswag", "hellaswag", 0, "lm-eval; quoted as acc_norm"),
    "piqa": Protocol("piqa", "piqa", 0, "lm-eval"),
    "winogrande": Protocol("winogrande", "winogrande", 0, "lm-eval: the suffix is scored"),
    "ifeval": Protocol("ifeval", "ifeval", 0, "Zhou et al. 2023"),
    "mmlu_pro": Protocol("mmlu_pro", "mmlu_pro", 5, "Wang et al. 2024: CoT", chance=0.1),
    "bbh": Protocol("bbh_cot_fewshot", "bbh/cot_fewshot", 3, "Suzgun et al. 2022: CoT"),
    "triviaqa": Protocol("triviaqa", "triviaqa", 5, f"{META}: 5-shot"),
    "openbookqa": Protocol("openbookqa", "openbookqa", 0, "lm-eval"),
    "commonsense_qa": Protocol("commonsense_qa", "commonsense_qa", 0, "lm-eval"),
    "mbpp": Protocol("mbpp", "mbpp", 3, "DeepSeek-V3 §4.4"),
    "tool_calls": Protocol("tool_calls", "", 0, "rows of BFCL, compared to the letter"),
    "needle": Protocol("needle", "", 0, f"{META}: NIH; by length"),
    "needles": Protocol("needles", "", 0, f"{META}: multi-needle, four codes; by length"),
    "core": Protocol("core", "", None, "Li et al. 2024, as nanochat computes it"),
} | {
    f"mmlu_{language}_llama": Protocol(
        f"mmlu_{language}_llama",
        f"llama3/instruct/mmlu_{language}",
        5,
        f"{META}: multilingual",
        chance=0.25,
    )
    for language in ("de", "es", "fr", "hi", "it", "pt", "th")
}
PROTOCOLS = LECTURE | OTHERS
CHANCES = {each.task: each.chance for each in PROTOCOLS.values() if each.chance}
"""By lm-eval's task: what guessing gets where the option is generated."""
