"""Estimates of memory, speed and cost, without torch; `llamaseek.plan(...)` makes one."""

from llamaseek.verbs import make_callable

make_callable(__name__)
