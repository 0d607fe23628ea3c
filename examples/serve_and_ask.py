"""A server over a library, asked with OpenAI's own client: who answered, and how much of each.

python examples/serve_and_ask.py [LIBRARY]
"""

import subprocess
import sys

from openai import OpenAI
from small import opened

READY = ": ready\n"

library, _ = opened()
command = [sys.executable, "-m", "asterism", "serve", str(library.root), "--port", "0", "--name", "library", "--no-playground"]

with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
    try:
        url = next(line.removesuffix(READY) for line in server.stderr if line.endswith(READY))
        with OpenAI(base_url=f"{url}/v1", api_key="none") as client:
            print("models:", *(model.id for model in client.models.list()))

            asked = {"model": "library", "max_tokens": 12, "temperature": 0}
            answer = client.completions.create(**asked, prompt="The patient was given", extra_body={"asterism": {"top_k": 2}})
            print(answer.choices[0].text)
            print(answer.asterism["shares"], "generalist:", answer.asterism["generalist"])

            fixed = {"asterism": {"mixture": {library.names[0]: 0.7, library.names[1]: 0.2}}}  # the rest is the generalist's
            stream = client.completions.create(**asked, prompt="The court held that", extra_body=fixed, stream=True)
            print("".join(chunk.choices[0].text for chunk in stream if chunk.choices))
    finally:
        server.terminate()  # answers under way finish
