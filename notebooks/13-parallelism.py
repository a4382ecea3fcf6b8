# %% [markdown]
# # 13. Many GPUs: data and model parallelism
#
# **Aim.** See what is split in each kind of parallelism and what must be sent, and count the GPUs for
# a trillion parameters.
#
# Slides: *Training Hacks* (data parallelization, model parallelization), *ICE #6* (class question 6).
#
# A **rank** is one process with its own device. In **data parallelism** every rank has the whole
# model and its own part of the batch; the gradients are averaged. In **model parallelism** the
# tensors are split, and every rank sees the same batch. Both send numbers between ranks.

# %%
import subprocess
import sys
import tempfile
from pathlib import Path

import llamaseek
from notebooks.kit import plt, source

# %% [markdown]
# ## Two processes: averaged gradients equal one process's
#
# A program of a few lines, started twice on this machine by torchrun:

# %%
PROGRAM = '''
import torch, torch.distributed as dist
from torch import nn

dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(0)
model, batch = nn.Linear(8, 4, bias=False), torch.randn(6, 8)
whole = nn.Linear(8, 4, bias=False)
whole.load_state_dict(model.state_dict())

whole(batch).square().mean().backward()              # one process, the whole batch
model(batch[rank * 3 : rank * 3 + 3]).square().mean().backward()  # this rank's half
dist.all_reduce(model.weight.grad)
model.weight.grad /= dist.get_world_size()
assert torch.allclose(model.weight.grad, whole.weight.grad, atol=1e-6)

rows = whole.weight.chunk(2)[rank]                    # a split matrix: this rank's output rows
parts = [torch.empty(6, 2) for _ in range(2)]
dist.all_gather(parts, (batch @ rows.T).detach())
assert torch.allclose(torch.cat(parts, 1), whole(batch).detach(), atol=1e-6)
if rank == 0:
    print("averaged gradients = one process; a split matrix = the whole")
dist.destroy_process_group()
'''
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "program.py"
    path.write_text(PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
print(done.stdout or done.stderr[-2000:])
assert done.returncode == 0

# %% [markdown]
# In a recipe it is one line: `torchrun --nproc-per-node 2 -m llamaseek pretrain RECIPE
# parallel.data=2`, or `parallel.tensor=2`, or both. Parallelism is applied from outside; model code
# has no rank in it:

# %%
from llamaseek.parallel import tensor

source(tensor.ColumnParallelLinear)

# %% [markdown]
# ## What a rank holds
#
# Training with Adam in mixed precision (products in bf16, numbers of 2 bytes; the weights that are
# updated in fp32, 4 bytes) needs, for each parameter, the weight, its gradient and two moments of the
# optimizer. *Sharding* splits all of them over the ranks; `llamaseek plan` counts. Llama 3.1 8B, full
# fine-tuning:

# %%
figure, axis = plt.subplots(figsize=(8, 3))
bottom: dict[int, float] = {}
counts = (8, 16, 32, 64)
plans = {count: llamaseek.plan("llama-3.1-8b", gpu="h100-80gb", task="sft", gpus=count) for count in counts}
memory = {count: found["layout"]["bytes_per_gpu"] for count, found in plans.items()}
parts = [part for part in next(iter(memory.values())) if part != "total"]
for part in parts:
    heights = [memory[count][part] / 1e9 for count in counts]
    axis.bar(range(len(counts)), heights, bottom=[bottom.get(count, 0) for count in counts], label=part)
    for count, height in zip(counts, heights, strict=True):
        bottom[count] = bottom.get(count, 0) + height
axis.set(xticks=range(len(counts)), xlabel="GPUs", ylabel="GB on each GPU")
axis.set_xticklabels(counts), axis.legend(fontsize=7)
plt.show()

# %% [markdown]
# ## Class question 6
#
# *DeepFetch has 1 trillion parameters. How many H100 GPUs with 80 GB hold the model in memory?*
# (25, 50, 75 or 100)
#
# **25**, in bf16: $10^{12} \times 2$ bytes $/\ (80 \cdot 10^9$ bytes$)$. The planner says the same:

# %%
found = llamaseek.plan(gpu="h100-80gb", params=1e12)
print({key: value for key, value in found.items() if "gpu" in key})

# %% [markdown]
# ## Exercise
#
# Write the count for other conditions: bytes a parameter, and bytes of memory a card has. With weights
# in fp8, a byte each; with a card of 80 GiB ($80 \cdot 2^{30}$ bytes); and for training with Adam in mixed
# precision, 16 bytes a parameter before activations.

# %% tags=["solution"]
def gpus(parameters: float, bytes_each: float, card: float = 80e9) -> int:
    """The fewest cards whose memory holds that many bytes."""
    whole, rest = divmod(parameters * bytes_each, card)
    return int(whole) + (rest > 0)

# %% tags=["check"]
assert gpus(1e12, 2) == 25
assert gpus(1e12, 1) == 13
assert gpus(1e12, 2, 80 * 2**30) == 24
assert gpus(1e12, 16) == 200
assert gpus(1e12, 2) == found["gpus_for_weights"]

# %% [markdown]
# ## Read next
#
# - [Training on many ranks](../docs/parallel.md), [planning](../docs/plan.md).
# - Shoeybi et al. 2019 (Megatron-LM, tensor parallelism); Zhao et al. 2023 (FSDP).
