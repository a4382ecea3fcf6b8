# %% [markdown]
# # 1. Types of training
#
# **Aim.** See what each kind of training changes in one small model: pre-training, supervised
# fine-tuning, instruction tuning and preference alignment.
#
# Slides: *Types of LLM training*, *Foundation Model/Pre-Trained Models*, *Post-Training*,
# *RLHF/DPO*, class question 0.
#
# A **language model** gives every possible next token a probability. A **token** is a piece of
# text with a number: a word, a part of one, or a sign (notebook 11). **Training** changes the
# model's numbers, its *weights*, so that what it should say becomes more probable. The **loss**
# says how improbable it still is.

# %%
import llamaseek
from notebooks.kit import curve, pick, plt, source, trained

# %% [markdown]
# ## Four stages, one model
#
# A **foundation model**, or pre-trained model, has only read text. What follows is called
# **post-training**: **supervised fine-tuning** (SFT) shows the model inputs of a task with the wanted
# outputs, **instruction tuning** does so with instructions of many kinds (both: notebook 4), and
# preference alignment shows it which of two answers people like better (notebook 6). All four stages
# use one training loop and differ in their data and in what is predicted. The stages, as the project
# names them:

# %%
from llamaseek.study.lecture import STAGES

for stage, (title, what) in STAGES.items():
    print(f"{stage:10} {title}: {what}")

# %% [markdown]
# The next cell trains them one after the other (or finds them, if they are trained already). Each
# starts from the weights of the one before.

# %%
runs = {stage: trained(stage) for stage in STAGES}
for stage, run in runs.items():
    print(f"{stage:10} {run.metrics[-1]['step']:4} steps, in {run.folder}")

# %% [markdown]
# The training loss of each stage. The four losses are over different data, so only the fall of each
# curve says something, not the height of one against another:

# %%
figure, axes = plt.subplots(1, 4, figsize=(10, 2.4))
for axis, (stage, run) in zip(axes, runs.items(), strict=True):
    axis.plot(*curve(run, "loss"))
    axis.set(title=stage, xlabel="step")
axes[0].set_ylabel("loss")
plt.show()

# %% [markdown]
# ## What the model says after each stage
#
# The same three inputs for all four models: the beginning of a story, a task from the lecture, an
# instruction.

# %%
from llamaseek.data.builtin.instructions import LECTURE_INSTRUCTION
from llamaseek.data.builtin.tasks import LECTURE_EXAMPLES

task = LECTURE_EXAMPLES[0].input
said: dict[str, list[str]] = {}
for stage, run in runs.items():
    model = run.model(dtype="fp32")
    said[stage] = [model.generate("The red fox", max_tokens=8)]
    for text in (task, LECTURE_INSTRUCTION.input):
        answer = model.chat([{"role": "user", "content": text}], max_tokens=16)
        said[stage].append(answer["content"])
for title, index in (("The red fox", 0), (task, 1), (LECTURE_INSTRUCTION.input, 2)):
    print(f"> {title}")
    for stage, answers in said.items():
        print(f"  {stage:10} {answers[index]!r}")

# %% [markdown]
# The pre-trained model continues text. Only after supervised fine-tuning does it answer a task,
# and only after instruction tuning does it do what a sentence asks for. A model as small as this,
# trained for a few minutes, makes mistakes; `llamaseek quickstart` trains longer.
#
# ## Class question 0
#
# *Why not just do a single training instead of multiple trainings?*
#
# 1. Single training won't work
# 2. Multiple trainings use different sources of high quality vs medium quality data
# 3. Single training has no foundation to build on
# 4. Multiple training breaks down overall objectives (notebook 2) into multiple stages
# 5. Multiple training is faster
#
# **2 and 4.** An *objective* is what a training asks the model to predict (notebook 2). The first is
# refuted by an experiment: `llamaseek study stages` trains one model on everything at once, and it
# follows 84% of the instructions at this size. The third is a figure of speech; the fifth is not so at
# equal numbers of steps. The experiment:

# %%
from llamaseek.study import stages as study

source(study.stages)

# %% [markdown]
# ## Exercise
#
# How much of what pre-training taught is left after each later stage? First guess which stage costs
# the most. Then measure it: the share of stories that the model continues in the grammar of the
# training text. Write `story_rate`, with `story_parse_rate(generator, items)` from
# `llamaseek.evals.generated`.

# %%
from llamaseek.evals.generated import Generator, story_parse_rate

ITEMS = pick(60, 8)
source(story_parse_rate)

# %% tags=["solution"]
def story_rate(model: llamaseek.Model) -> float:
    """The share of ITEMS stories that `model` continues in the stories' grammar."""
    return story_parse_rate(Generator(model.network, model.tokenizer), ITEMS)

# %% tags=["check"]
rates = {stage: story_rate(run.model(dtype="fp32")) for stage, run in runs.items()}
assert all(0 <= rate <= 1 for rate in rates.values())
again = Generator(runs["pretrain"].model(dtype="fp32").network, model.tokenizer)
assert rates["pretrain"] == story_parse_rate(again, ITEMS)
print(rates)

# %% [markdown]
# ## Read next
#
# - [Post-training](../docs/post-training/index.md): every method with its sources.
# - Grattafiori et al. 2024, *The Llama 3 Herd of Models*, §1 and §4: the stages of Llama 3.
# - [Experiments](../docs/studies.md): one training against stages, with figures.
