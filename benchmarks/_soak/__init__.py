"""The soak benchmark: a provider with hidden limits in virtual time, and what sends through it."""
