"""Packages: those of `llamaseek/`, and `recipes/`, which an installation keeps inside."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["llamaseek*"]), "llamaseek.recipes"])
