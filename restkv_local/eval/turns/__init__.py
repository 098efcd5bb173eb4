"""One text, many questions: what is left of a text for the second question, and for those after it.

A text is read before anybody knows what will be asked. Then questions come in random order, each behind the earlier
ones and their right answers, or each behind the text alone. Every way to read and to ask is compared with the full
cache on the same questions.
"""
