"""Floor 10: the HTTP surface over engines, in the OpenAI API's shapes, with the guard on by default."""
