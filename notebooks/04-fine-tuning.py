# %% [markdown]
# # 4. Supervised and instruction fine-tuning
#
# **Aim.** Know what fine-tuning learns from a conversation, which loss it has, and how it differs
# between one task and many instructions.
#
# Slides: *Instruct Fine-tuning vs Supervised Fine-Tuning* (three), *SFT vs Instruct Fine-tuned Model*,
# class question 3.
#
# **Supervised fine-tuning** (SFT) goes on training a pre-trained model on inputs with the wanted
# outputs of specific tasks. **Instruction tuning** is the same training on instructions of many kinds.
# A conversation is written as tokens by a **chat template**: each message becomes a header with its
# role, the text, and an end-of-turn token (notebook 11).

# %%
import torch
from IPython.display import HTML
from torch.nn import functional as F

from llamaseek.data.batch import IGNORE
from llamaseek.data.rows import conversations
from llamaseek.train.objectives.next_token import NextToken
from notebooks.kit import plt, source, trained

sft = trained("sft")
model = sft.model(dtype="fp32")
tokenizer = model.tokenizer
chat = {"messages": [
    {"role": "user", "content": "I am not feeling good today"},
    {"role": "assistant", "content": "Unhappy"},
]}  # fmt: skip
batch = conversations([("row 1", chat)], tokenizer, length=128)

# %% [markdown]
# ## Only the answer has a loss
#
# The user's words are read, not learned. Tokens in color are targets: the answer and its end of turn.


# %%
def colored(ids: list[int], targets: list[int]) -> HTML:
    """The tokens of a row; those that the token before them should predict are marked."""
    learned = [False, *(target != IGNORE for target in targets[:-1])]
    marks = []
    for token, mark in zip(ids, learned, strict=True):
        text = tokenizer.token_text(token).replace("<", "&lt;").replace("\n", "⏎")
        color = "#ffd9a0; color: black" if mark else "transparent"
        marks.append(f'<span style="background: {color}; border: 1px solid #999; margin: 1px">{text}</span>')
    return HTML(" ".join(marks))


count = int((batch.positions[0] > 0).sum()) + 1
colored(batch.tokens[0, :count].tolist(), batch.targets[0, :count].tolist())

# %%
source(conversations)

# %% [markdown]
# ## Class question 3: the loss of SFT
#
# *Cross-entropy, or quadratic loss?* **Cross-entropy.** The trainer's loss on this conversation is
# the mean of $-\log p$ over the marked tokens, computed here by hand:

# %%
with torch.no_grad():
    hidden = model.network(batch.tokens, batch.positions)
    logits = model.network.logits(hidden)
    (term, *_) = NextToken(balance_weight=0.0).terms(model.network, batch)
counted = batch.targets != IGNORE
by_hand = -logits.log_softmax(-1)[counted].gather(1, batch.targets[counted][:, None]).mean()
by_trainer = term.sum / counted.sum()
print(f"by hand {by_hand:.6f}, by the trainer {by_trainer:.6f}")
assert torch.allclose(by_hand, by_trainer, atol=1e-5)

# %% [markdown]
# Squared error against one-hot targets would learn as well, more slowly: where the right token has a
# small probability, its gradient almost vanishes. One position, 40 steps of gradient descent each:

# %%
figure, axis = plt.subplots()
for name in ("cross-entropy", "squared error"):
    scores = torch.zeros(50, requires_grad=True)
    right = torch.tensor(7)
    probabilities = []
    for _ in range(40):
        p = scores.softmax(-1)
        loss = F.cross_entropy(scores, right) if name == "cross-entropy" else F.mse_loss(p, F.one_hot(right, 50).float(), reduction="sum")
        (gradient,) = torch.autograd.grad(loss, scores)
        scores = (scores - gradient).detach().requires_grad_()
        probabilities.append(float(p[7].detach()))
    axis.plot(probabilities, label=name)
axis.set(xlabel="step", ylabel="probability of the right token")
axis.legend()
plt.show()

# %% [markdown]
# ## One task, or instructions
#
# The slide's three tasks, asked of the model after SFT and after instruction tuning, and one
# instruction:

# %%
instructed = trained("instruct").model(dtype="fp32")
questions = (
    "I am not feeling good today",
    "I would love to go to New York and spend time on Times Square",
    "What is the tallest mountain in the world?",
    "You are to complete the following sentence. Sentence: 'The red fox '",
)
for text in questions:
    message = [{"role": "user", "content": text}]
    for name, one in (("SFT", model), ("instruct", instructed)):
        print(f"{name:9} {one.chat(message, max_tokens=16)['content']!r}")

# %% [markdown]
# ## Exercise
#
# Mask a chat of two turns yourself. `ids` are its tokens, `roles` says for each token whose turn it
# stands in, headers included; the answer's text begins after the header `assistant` and its blank
# line. Return the targets: at each position the next token if that one belongs to an assistant's
# text or is its end of turn, else IGNORE.

# %%
two_turns = {"messages": [
    {"role": "user", "content": "I am not feeling good today"},
    {"role": "assistant", "content": "Unhappy"},
    {"role": "user", "content": "What is the tallest mountain in the world?"},
    {"role": "assistant", "content": "Mount Everest"},
]}  # fmt: skip
wanted = conversations([("row 1", two_turns)], tokenizer, length=256)
length = int((wanted.positions[0] > 0).sum()) + 1
ids = wanted.tokens[0, :length].tolist()
turn_ends = [place for place, token in enumerate(ids) if token == tokenizer.eot_id]
headers_end = [place for place, token in enumerate(ids) if token == tokenizer.end_header_id]
blank_line = len(tokenizer.encode("\n\n"))  # tokens
print("ends of turns at", turn_ends, "headers end at", headers_end, "blank line:", blank_line, "tokens")

# %% tags=["solution"]
def chat_targets(ids: list[int], turn_ends: list[int], headers_end: list[int]) -> list[int]:
    """The targets of a chat whose second and fourth turns are the assistant's."""
    targets = [IGNORE] * len(ids)
    for turn in (1, 3):
        first = headers_end[turn] + 1 + blank_line
        for place in range(first, turn_ends[turn] + 1):
            targets[place - 1] = ids[place]
    return targets

# %% tags=["check"]
assert chat_targets(ids, turn_ends, headers_end) == wanted.targets[0, :length].tolist()

# %% [markdown]
# ## Read next
#
# - [Fine-tuning](../docs/post-training/sft.md); [adapters](../docs/post-training/lora.md), which train
#   a small part of the weights.
# - Ouyang et al. 2022, *InstructGPT*; Grattafiori et al. 2024, §4.1.
