"""LlamaIndex over a pool of keys: given both limits, its model sends nothing before it has the client."""

from llama_index.core.llms import ChatMessage
from llama_index.llms.google_genai import GoogleGenAI

from llm_router.genai import Client

llm = GoogleGenAI("gemini-3.8-flash", api_key="not-used", max_tokens=1024, context_window=1_000_000)
llm._client = Client.from_config("keys.json", max_wait=30)  # noqa: SLF001 - there is no other way
print("llama-index:", llm.chat([ChatMessage("Name a famous ship.")]).message.content)
for piece in llm.stream_complete("Name another."):
    print(piece.delta, end="")
