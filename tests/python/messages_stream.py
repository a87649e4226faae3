"""Reads answers of an endpoint of the Messages API with the official SDK, and prints what it makes of each.

Usage: messages_stream.py BASE_URL KEY COUNT
"""

import json
import sys

import anthropic


def shown(block):
    kept = ("type", "text", "thinking", "signature", "data", "id", "name", "input", "citations")
    return {name: value for name, value in block.model_dump().items() if name in kept and value is not None}


def main() -> None:
    base_url, key, count = sys.argv[1:]
    client = anthropic.Anthropic(base_url=base_url, api_key=key, max_retries=0)
    answers = []
    for _ in range(int(count)):
        try:
            said = [{"role": "user", "content": "Hello?"}]
            with client.messages.stream(model="m-1", max_tokens=1000, messages=said) as stream:
                message = stream.get_final_message()
            usage = message.usage
            answers.append({
                "content": [shown(block) for block in message.content],
                "stop_reason": message.stop_reason,
                "usage": [usage.input_tokens, usage.output_tokens, usage.cache_creation_input_tokens,
                          usage.cache_read_input_tokens],
            })
        except Exception as error:
            answers.append({"error": type(error).__name__})
    print(json.dumps(answers))


main()
