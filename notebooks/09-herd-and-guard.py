# %% [markdown]
# # 9. The herd of models, and Llama Guard
#
# **Aim.** Know the published sizes and what each can do, count parameters from a configuration, and
# see how a guard model judges a conversation.
#
# Slides: *Llama3 Herd* (405B, 70B, 8B, 1B, Llama Guard 3), *Llama 3 Herd of Models* (the table).
#
# A **parameter** is one number of the weights. A model's **configuration** (`config.json`) has the
# sizes from which every parameter can be counted.

# %%
from llamaseek.herd.published import ENTRIES
from llamaseek.herd.tensors import count_parameters
from notebooks.kit import plt, source

for name, entry in ENTRIES.items():
    print(f"{name:28} {count_parameters(entry.config).total / 1e9:9.2f} B   context {entry.context:>8,}")

# %% [markdown]
# The lecture's table, by what is known of each model (`llamaseek herd` prints it with marks for
# fine-tuned, multilingual, long context and tool use):

# %%
sizes = {name: count_parameters(entry.config) for name, entry in ENTRIES.items() if "instruct" not in name and name.startswith(("llama-3", "deepseek"))}
figure, axis = plt.subplots(figsize=(9, 3))
axis.bar(range(len(sizes)), [count.total for count in sizes.values()], label="all")
axis.bar(range(len(sizes)), [count.activated for count in sizes.values()], width=0.5, label="used for one token")
axis.set_yscale("log"), axis.set(xticks=range(len(sizes)), ylabel="parameters")
axis.set_xticklabels(sizes, rotation=60, ha="right", fontsize=7), axis.legend()
plt.show()

# %% [markdown]
# For a Llama all parameters work for every token; DeepSeek-V3 chooses a few of its experts for each
# (notebook 14).
#
# ## Llama Guard
#
# A **guard** is a language model that reads a conversation and answers `safe`, or `unsafe` with the
# codes of the broken rules. Its prompt has the rules and the conversation, each user text apart from
# the special tokens (notebook 11):

# %%
from llamaseek.safety.verdict import read_answer
from llamaseek.text.guard_prompt import PUBLISHED

source(read_answer)

# %%
for category in PUBLISHED:
    print(category.code, category.name)

# %% [markdown]
# Only `safe` counts as safe. What cannot be read is no verdict, and without a verdict nothing passes:

# %%
from llamaseek.safety.verdict import GuardError

for answer in ("safe", "unsafe\nS2", "unsafe\nS1,S10", "Safe.", "I think it is fine"):
    try:
        safe, broken = read_answer(answer, PUBLISHED)
        print(f"{answer!r:24} safe: {safe}  {[category.code for category in broken]}")
    except GuardError as error:
        print(f"{answer!r:24} no verdict: {error}")

# %% [markdown]
# A tiny guard can be trained in minutes (`llamaseek pretrain guard-pretrain`, then `llamaseek sft
# guard`); [the guard's page](../docs/guard.md) has its figures.
#
# ## Exercise
#
# Count the parameters of a Llama from its configuration alone. Each layer has the projections of
# queries, keys, values and output (notebook 10), three matrices of the feed-forward part, and two
# norms; before the layers stands the embedding, after them a norm and the head, which is a matrix of
# its own unless `tie_word_embeddings`.

# %% tags=["solution"]
def parameters(config) -> int:
    """The number of parameters of a Llama with these sizes."""
    width, heads = config.hidden_size, config.num_attention_heads
    attention = 2 * width * heads * config.head_dim
    attention += 2 * width * config.num_key_value_heads * config.head_dim
    feed_forward = 3 * width * config.intermediate_size
    layer = attention + feed_forward + 2 * width
    tables = config.vocab_size * width * (1 if config.tie_word_embeddings else 2)
    return config.num_hidden_layers * layer + tables + width

# %% tags=["check"]
assert parameters(ENTRIES["llama-3.1-8b"].config) == 8_030_261_248
for name in ("llama-3.2-1b", "llama-3.1-70b", "llama-3.1-405b", "smollm2-135m"):
    assert parameters(ENTRIES[name].config) == count_parameters(ENTRIES[name].config).total, name

# %% [markdown]
# ## Read next
#
# - [Models](../docs/models.md): the published models by size and part.
# - Inan et al. 2023, *Llama Guard*; Grattafiori et al. 2024, §5.4.
