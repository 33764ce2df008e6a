"""Clients of outside services: chat models, image generation and editing over HTTP.

    endpoint = transport.Endpoint(base_url='http://localhost:8000/v1', model='Qwen/Qwen3-VL-8B-Instruct')
    limits = budget.Budget(calls=1000, path='out/budget.json')
    client = chat.Chat(endpoint, budget=limits, cache=cache.Cache('out/cache'))
    client.ask([chat.Message('user', 'Is this a ring?', (picture,))], schema=SCHEMA).value

chat        OpenAI-compatible chat completions (OpenAI, vLLM, llama.cpp), pictures, structured output
images      FLUX Kontext and OpenAI-compatible image generation and editing
transport   Endpoint; one logical call: retries, time limits, concurrency, budget
budget      limits of calls, tokens and money; Cost, Price
errors      what they raise; faults: what a response means
structured  JSON out of prose, checked by a schema; cache, keys, pictures

Clients need the extra `judge` (`pip install 'pdgen[judge]'`); the modules import without it.
"""
