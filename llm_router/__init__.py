"""Spend many LLM API keys well: quota-exact, asynchronous routing of prompts over keys and models."""
