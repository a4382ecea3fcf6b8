"""Training: jobs, objectives, rewards, rollouts, saving; `llamaseek.train(...)` runs a recipe."""

from llamaseek.verbs import make_callable

make_callable(__name__)
