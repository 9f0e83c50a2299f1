"""Scores: the same prompts and seeds for every checkpoint, honest intervals, gates, a report.

``suite`` says what is asked; ``frechet``, ``kernel``, ``clip_score`` and ``palette`` measure;
``scale`` puts that between two known ends; ``statistics`` says how sure it is; ``gates`` and
``choose`` decide; ``score`` is the front door; ``report`` shows it to people.
"""
