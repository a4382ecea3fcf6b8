"""What a model needs before anyone buys it: memory, GPUs, layout, time, cost. No torch import."""
