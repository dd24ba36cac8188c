"""Deep equilibrium models small enough to prove theorems about."""
