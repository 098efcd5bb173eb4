"""How an answer is asked for and put into words: prompts, text, seeds, grammars, chat formats. Knows no cache.

`engine.speaking` brings it together with a model.
"""
