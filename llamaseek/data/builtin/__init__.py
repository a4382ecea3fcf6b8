"""Seeded text, tasks and preferences with programs that grade answers; standard library only."""
