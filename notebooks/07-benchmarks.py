# %% [markdown]
# # 7. What a benchmark measures
#
# **Aim.** Read the lecture's table critically: know each benchmark's protocol, its chance level and
# its error bar, and write the extraction of an answer yourself.
#
# Slides: *Llama 3 Instruct Performance* (both).
#
# A **benchmark** is a set of questions with a rule that says whether an answer is right. **k-shot**
# means that the prompt holds k solved examples; **CoT** (chain of thought) that the examples reason
# before they answer.

# %%
import math
import re

import llamaseek
from notebooks.kit import SMOLLM2, pick, plt, source, trained

TABLE = {  # the lecture's table: (value, questions in the benchmark, share right by guessing)
    "MMLU 5-shot": ({"Llama 3 8B": 68.4, "Gemma 7B": 53.3, "Mistral 7B": 58.4}, 14042, 0.25),
    "GPQA 0-shot": ({"Llama 3 8B": 34.2, "Gemma 7B": 21.4, "Mistral 7B": 26.3}, 448, 0.25),
    "HumanEval 0-shot": ({"Llama 3 8B": 62.2, "Gemma 7B": 30.5, "Mistral 7B": 36.6}, 164, 0.0),
    "GSM-8K 8-shot, CoT": ({"Llama 3 8B": 79.6, "Gemma 7B": 30.6, "Mistral 7B": 39.9}, 1319, 0.0),
    "MATH 4-shot, CoT": ({"Llama 3 8B": 30.0, "Gemma 7B": 12.2, "Mistral 7B": 11.0}, 5000, 0.0),
}

# %% [markdown]
# ## The table with error bars
#
# A share $p$ of $n$ questions has the **standard error** $\sqrt{p (1 - p) / n}$. HumanEval has only
# 164 questions, GPQA 448: differences of a few points are within the error there.

# %%
figure, axis = plt.subplots(figsize=(9, 3.2))
for place, (values, count, chance) in enumerate(TABLE.values()):
    for offset, (model_name, value) in enumerate(values.items()):
        share = value / 100
        error = 100 * math.sqrt(share * (1 - share) / count)
        axis.bar(place + (offset - 1) * 0.27, value, 0.25, color=f"C{offset}", yerr=2 * error, label=model_name if not place else None)
    axis.plot([place - 0.4, place + 0.4], [100 * chance] * 2, color="black", linestyle=":")
axis.set(xticks=range(len(TABLE)), ylabel="% right, ± 2 standard errors; dotted: guessing")
axis.set_xticklabels(TABLE, fontsize=8)
axis.legend()
plt.show()

# %% [markdown]
# The columns of the lecture's table are not like for like: GPQA of Gemini is with a chain of thought,
# GSM-8K of Claude is 0-shot, MATH of Gemini uses Minerva's prompt. The lecture marks them so.
#
# ## How code is judged: a sandbox
#
# HumanEval runs the answer's code against tests. Code of a model is a stranger's code, so it runs in
# processes of its own, bounded in time and memory:

# %%
from llamaseek.workers.sandbox import Sandbox, SandboxLimits

sandbox = Sandbox()
right = "def add(a, b):\n    return a + b\n"
wrong = "def add(a, b):\n    return a - b\n"
endless = "def add(a, b):\n    while True: pass\n"
tests = "assert add(2, 3) == 5"
for name, code in (("right", right), ("wrong", wrong), ("endless", endless)):
    (verdict,) = sandbox.run_all([(code, tests)], SandboxLimits(seconds=2))
    print(f"{name:8} passed: {verdict.passed}")

# %%
source(Sandbox.run_all)

# %% [markdown]
# ## Oracle, random, and a tiny model
#
# Before a score is believed, the harness itself is tested: answers from the key must score 100%,
# guesses must score the chance level. Sums of two numbers as a benchmark with four choices, answered by
# the key (an *oracle*), at random, by the course's tiny model, and by SmolLM2 if it is on this machine:

# %%
from random import Random

rng = Random(0)
QUESTIONS = []
for index in rng.sample(range(1600), pick(100, 40)):  # 40 × 40 sums, none twice
    a, b = 10 + index // 40, 10 + index % 40
    choices = [a + b, a + b + 1, a + b - 2, a + b + 10]
    rng.shuffle(choices)
    QUESTIONS.append((f"{a}+{b}=", choices, choices.index(a + b)))
model = trained("pretrain").model(dtype="fp32")


def by_likelihood(model: llamaseek.Model, text: str, choices: list[int]) -> int:
    """The choice to which a model gives the highest probability after `text`."""
    scores = [sum(token.logprob for token in row[-len(str(choice)):] if token.logprob is not None)
              for choice, row in zip(choices, model.logprobs([text + str(c) for c in choices]), strict=True)]
    return scores.index(max(scores))


def score(answer) -> float:
    """The share of the questions that `answer(text, choices)` gets right."""
    return sum(answer(text, choices) == key for text, choices, key in QUESTIONS) / len(QUESTIONS)


keys = {text: key for text, _, key in QUESTIONS}
scores = {
    "oracle": score(lambda text, choices: keys[text]),
    "random": score(lambda text, choices: rng.randrange(4)),
    "tiny model": score(lambda text, choices: by_likelihood(model, text, choices)),
}
if SMOLLM2:
    published = llamaseek.load(SMOLLM2, dtype="fp32")
    scores["SmolLM2 135M"] = score(lambda text, choices: by_likelihood(published, text, choices))
assert scores["oracle"] == 1.0
plt.bar(scores.keys(), scores.values(), yerr=[2 * math.sqrt(s * (1 - s) / len(QUESTIONS)) for s in scores.values()])
plt.axhline(0.25, linestyle=":", color="black"), plt.ylabel("share right")
plt.show()

# %% [markdown]
# ## Exercise
#
# GSM8K's answers end in `#### 1,200`. Models write `The answer is $1,200.00.` and the like. Write the
# *flexible* extraction: the last number of a text as a float, without thousands commas and dollar
# signs; None where there is none.

# %% tags=["solution"]
def last_number(text: str) -> float | None:
    """The last number in `text`."""
    found = re.findall(r"-?\$?\d[\d,]*(?:\.\d+)?", text)
    return float(re.sub(r"[$,]", "", found[-1])) if found else None

# %% tags=["check"]
from llamaseek.train.rewards import last_number as ours

SAMPLES = ("#### 1,200", "The answer is $1,200.00.", "so 3 apples", "none", "-7", "He pays 5 dollars and gets 2.50 back.", "18 eggs a day")
for text in SAMPLES:
    assert last_number(text) == (None if ours(text) is None else float(ours(text))), text
assert last_number("1,200 then 3") == 3

# %% [markdown]
# ## Read next
#
# - Meta's page of the table: <https://ai.meta.com/blog/meta-llama-3/>.
# - Hendrycks et al. 2020 (MMLU), Rein et al. 2023 (GPQA), Chen et al. 2021 (HumanEval), Cobbe et al.
#   2021 (GSM8K), Hendrycks et al. 2021 (MATH).
