# %% [markdown]
# # 5. Which model to start from
#
# **Aim.** Answer class question 4 by measurement, and learn to state an expectation before one.
#
# Slides: class question 4: *If you had to fine-tune an LLM that can detect an emotion from a review,
# which would you pick? 1. Fine-tune an instruct model. 2. Fine-tune the pre-trained model.
# 3. Fine-tune the SFT model.*
#
# Both sides have arguments. The lecture calls SFT the fine-tuning of *the pre-trained LLM on specific
# tasks*, sentiment among them: that speaks for 2. A model that already reads tasks and answers in a
# word needs fewer examples: that speaks for 3 and 1.

# %%
import json
from random import Random

from llamaseek.data.builtin.reviews import review_item
from llamaseek.study.start import emotion_accuracy
from llamaseek.study.start import start as study
from notebooks.kit import RUNS, SMOLLM2, pick, plt, run, source, trained

for seed in range(3):
    item = review_item(Random(seed), "train")
    print(f"{item.input!r} -> {item.output!r}")

# %% [markdown]
# The project's study does this with several numbers of reviews and two seeds
# (`llamaseek study start`):

# %%
source(study)

# %% [markdown]
# ## Experiment: three starts, the same reviews

# %%
REVIEWS, STEPS, ITEMS = pick(256, 32), pick(40, 3), pick(100, 8)
accuracy = {}
for stage in ("pretrain", "sft", "instruct"):
    tuned = run(
        "quickstart-sft",
        {
            "model.init_from": str(trained(stage).model_folder),
            "data.rows": {"reviews": REVIEWS},
            "train.steps": STEPS,
            "train.batch": 32,
            "train.warmup": 2,
        },
        f"start-{stage}",
    )
    accuracy[stage] = emotion_accuracy(tuned.model_folder, ITEMS)
plt.bar(accuracy.keys(), accuracy.values())
plt.axhline(0.2, color="0.5", linestyle=":", label="guessing")
plt.ylabel(f"accuracy on {ITEMS} new reviews"), plt.legend()
plt.show()
print(accuracy)

# %% [markdown]
# At full size of the study: 79% from the instruct model, 72% from the SFT model, 50% from the
# pre-trained one, with 256 reviews; with 64 or fewer none is better than guessing. These models are
# small, and the instruct model has seen tasks of this form.
#
# ## The same question of a published model
#
# SmolLM2-135M-Instruct, not fine-tuned at all, given the five emotions and asked for one
# (`llamaseek download smollm2-135m-instruct` fetches it; without it the cell says so):

# %%
if SMOLLM2 is None:
    print("SmolLM2 is not on this machine: llamaseek download smollm2-135m-instruct")
else:
    import llamaseek

    published = llamaseek.load(SMOLLM2, dtype="fp32")
    items = [review_item(Random(1000 + seed), "test") for seed in range(pick(20, 3))]
    emotions = sorted({review_item(Random(seed), "test").output for seed in range(200)})
    right = 0
    for item in items:
        question = f"{item.input}\nWhich emotion is it? Answer with one word of: {', '.join(emotions)}."
        answer = published.chat([{"role": "user", "content": question}], max_tokens=8)["content"]
        right += answer.strip(" .").lower() == item.output.lower()
    print(f"{right} of {len(items)} by instruction alone")

# %% [markdown]
# Fine-tuned on 120 reviews, with 40 others to measure on, from two starts: the published instruct model, and
# the same model after SFT on another task, support tickets in five classes. (No package holds SmolLM2
# before its instruction tuning, so the pre-trained start is not measured here.) The cell below writes
# the reviews; each of these commands took two minutes of processor time:
#
#     llamaseek finetune smollm2-135m-instruct reviews.csv
#     llamaseek finetune runs/smollm2-135m-instruct-tickets/model reviews.csv
#
# | start | right before | loss on the 40 after 1, 2 and 3 epochs | right after 4 |
# |---|---|---|---|
# | instruct model | 17.5% | 0.71, 0.09, 0.01 | 100% of 40 |
# | SFT model (tickets) | 0% | 0.72, 0.17, 0.09 | 92.5% of 40 |
#
# Both starts learn the task from few reviews. The instruct model's loss falls faster; the
# difference in right answers, three of 40, is less than two standard errors (notebook 7).

# %%
import csv

from llamaseek.evals.generated import distinct

with open(RUNS / "reviews.csv", "w", newline="") as file:
    rows = csv.writer(file)
    rows.writerow(["text", "label"])
    for item in distinct(160, "reviews", lambda rng: review_item(rng, "train")):
        rows.writerow([item.input, item.output])
print(RUNS / "reviews.csv")

# %% [markdown]
# ## Exercise
#
# Plan a fourth start: the model after preference alignment (DPO, notebook 6). First state your
# expectation: `expectation` is "better", "equal" or "worse" than the instruct model. Then write
# `fourth_start`, which trains from it and returns the accuracy.

# %% tags=["solution"]
expectation = "equal"


def fourth_start() -> float:
    """The accuracy on new reviews of the model tuned from the DPO model, as the three above."""
    overrides = {
        "model.init_from": str(trained("dpo").model_folder),
        "data.rows": {"reviews": REVIEWS},
        "train.steps": STEPS,
        "train.batch": 32,
        "train.warmup": 2,
    }
    return emotion_accuracy(run("quickstart-sft", overrides, "start-dpo").model_folder, ITEMS)

# %% tags=["check"]
assert expectation in ("better", "equal", "worse"), "state an expectation first"
measured = fourth_start()
(folder,) = (path for path in RUNS.glob("start-dpo-*") if (path / "report.html").is_file())
recipe = (folder / "recipe.yaml").read_text()
assert str(trained("dpo").model_folder) in recipe and f"steps: {STEPS}" in recipe
assert measured == emotion_accuracy(folder / "model", ITEMS)
print(json.dumps({**accuracy, "dpo": measured}), "expected:", expectation)

# %% [markdown]
# ## Read next
#
# - [Experiments](../docs/studies.md): the study with two seeds.
# - [The questions of the lecture](../docs/questions.md).
