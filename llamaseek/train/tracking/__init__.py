"""Experiment tracking: the numbers of metrics.jsonl in TensorBoard, wandb, MLflow and Trackio.

One file for each tool, imported when a recipe asks for it in `train.track`.
"""
