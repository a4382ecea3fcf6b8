"""Work that can be killed: child processes bounded in time and memory, replaced when killed.

`WorkerPool` runs jobs in them; `template` renders chat templates, `grammar` compiles constraints
and computes token masks, `sandbox` judges generated code. Nothing here imports torch.
"""
