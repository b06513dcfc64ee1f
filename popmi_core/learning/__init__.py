"""Training in one place: the plain loop, distillation, and the choice of a group by validation."""
