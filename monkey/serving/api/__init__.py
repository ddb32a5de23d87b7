"""OpenAI's chat completions over HTTP: what is asked, what is refused, and how answers go out."""
