# %% [markdown]
# # 3. The data mix, and filters against bad data
#
# **Aim.** See how a training stream is drawn from several sources by weight, and how documents that
# nobody should learn from are found.
#
# Slides: *Pre-Trained Data Mix* (web text, code, math, reasoning-heavy corpus, synthetic data,
# multilingual data), *Llama2 vs Llama3* (high-quality filters, better data mix).
#
# A **corpus** is a collection of documents; the **data mix** says which share of the training tokens
# comes from each corpus.

# %%
from random import Random

from llamaseek.data.builtin.corpus import document
from llamaseek.data.mix.schedule import Phase, Position, Schedule
from notebooks.kit import pick, plt, source

MIX = {"web": 0.15, "code": 0.1, "math": 0.1, "reasoning": 0.1, "stories": 0.25, "knowledge": 0.22, "languages": 0.08}
for name in ("math", "reasoning", "stories", "knowledge", "languages"):
    print(f"{name:10} {document(name, Random(1))[:90]!r}")

# %% [markdown]
# ## Drawing by weight
#
# Independent random draws would miss a share by chance. The project always takes the source that is
# furthest behind its share:

# %%
source(Schedule.shares)

# %%
schedule = Schedule([Phase(0, MIX)], budgets={})
position = Position()
drawn = dict.fromkeys(MIX, 0)
LENGTH, DOCUMENT = 256, 80  # tokens of a row, of a document
for _ in range(pick(2000, 200)):
    schedule.begin_row(position, LENGTH)
    behind = {name: position.asked[name] - drawn[name] for name in MIX}
    while sum(drawn.values()) < sum(position.asked.values()):
        name = max(behind, key=behind.__getitem__)
        drawn[name] += DOCUMENT
        behind[name] -= DOCUMENT
total = sum(drawn.values())
plt.bar(range(len(MIX)), MIX.values(), width=-0.4, align="edge", label="asked")
plt.bar(range(len(MIX)), [count / total for count in drawn.values()], width=0.4, align="edge", label="drawn")
plt.xticks(range(len(MIX)), list(MIX)), plt.ylabel("share of tokens"), plt.legend()
plt.show()

# %% [markdown]
# ## Rules against junk
#
# Rules from the Gopher paper look at repeated lines and word sequences, at symbols and at stop words.
# A stage returns the document or the reason why it is dropped.

# %%
from llamaseek.data.clean.filters.gopher import GopherRepetition, repeated

source(GopherRepetition)

# %% [markdown]
# ## A classifier that learns from a judge
#
# Llama 3's pipeline asked Llama 2 to judge documents and trained fast classifiers on its verdicts.
# The same here, with a judge that is a rule, on documents of which every third is scrambled:

# %%
from llamaseek.data.clean.classifier import train_classifier

rng = Random(0)
texts, good = [], []
for index in range(pick(2000, 300)):
    text = " ".join(document("stories", rng) for _ in range(3))
    if index % 3 == 0:
        words = text.split()
        rng.shuffle(words)
        text = " ".join(words)
    texts.append(text)
    good.append(index % 3 != 0)
half = len(texts) // 2
classifier = train_classifier(texts[:half], [3 if ok else 0 for ok in good[:half]], best=3)
scores = [float(score) for score in classifier.scores(texts[half:])]
kept = [score for score, ok in zip(scores, good[half:], strict=True) if ok]
dropped = [score for score, ok in zip(scores, good[half:], strict=True) if not ok]
plt.hist([kept, dropped], bins=20, label=["whole", "scrambled"], stacked=True)
plt.xlabel("score of the classifier on documents it has not seen"), plt.legend()
plt.show()

# %% [markdown]
# ## Exercise
#
# Write a repetition filter: the share of a document's characters that stands in lines which occur
# more than once (every occurrence after the first counts). The Gopher rule drops a document above
# 20%.

# %%
planted = ["Buy now!\nBuy now!\nBuy now!\nBuy now!", "One.\nTwo.\nThree.", "A line.\nAnother.\nA line."]

# %% tags=["solution"]
def repeated_share(text: str) -> float:
    """The share of characters in lines that stood before in the text, line ends aside."""
    seen: set[str] = set()
    again = 0
    for line in text.splitlines():
        again += len(line) if line in seen else 0
        seen.add(line)
    return again / max(1, sum(len(line) for line in text.splitlines()))

# %% tags=["check"]
assert repeated_share(planted[0]) == 0.75
assert repeated_share(planted[1]) == 0
assert abs(repeated_share(planted[2]) - 7 / 22) < 1e-9
for text in planted:  # the project's own count: repeated pieces, and their characters
    assert repeated(text.splitlines())[1] == round(repeated_share(text) * sum(map(len, text.splitlines())))

# %% [markdown]
# ## Read next
#
# - [Data](../docs/data.md): every filter with its source and its defaults.
# - Rae et al. 2021, *Gopher*, appendix A; Grattafiori et al. 2024, §3.1.
