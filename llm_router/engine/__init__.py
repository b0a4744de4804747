"""How a request finds a deployment and what becomes of it."""
