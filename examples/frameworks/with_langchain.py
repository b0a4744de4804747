"""LangChain over a pool of keys: its model ignores ``client=``, so the client is set afterwards."""

from langchain_google_genai import ChatGoogleGenerativeAI
from pydantic import BaseModel

from llm_router.genai import Client


class Ship(BaseModel):
    name: str
    launched: int


llm = ChatGoogleGenerativeAI(model="gemini-3.8-flash", api_key="not-used")
llm.client = Client.from_config("keys.json", max_wait=30)
print("langchain:", repr(llm.with_structured_output(Ship).invoke("Name a famous ship.")))
for piece in llm.stream("Name a famous ship."):
    print(piece.text, end="")
