"""Prompts of LongBench's 16 English datasets: the official structure in words of our own.

The order of instruction, document, repeated instruction, question and cue is that of the official prompts
(github.com/THUDM/LongBench, config/dataset2prompt.json). That very file, put beside the data, takes their place.
"""

from __future__ import annotations

_DOCUMENTS = (
    "Answer the question from the passages that are given. Write the answer alone and nothing else.\n\n"
    "The passages:\n{context}\n\n"
    "Answer the question from the passages that are given. Write the answer alone and nothing else.\n\n"
    "Question: {input}\nAnswer:"
)
_SHORT = "Answer as briefly as you can, with a single phrase where that is enough, and explain nothing."
_ARTICLE = (
    "Answer as briefly as you can, with a single phrase or sentence where that is enough. If the article does not "
    'answer the question, write "unanswerable". If it is a yes/no question, write "yes", "no" or "unanswerable". '
    "Explain nothing."
)

PROMPTS: dict[str, str] = {
    "narrativeqa": (
        f"Here is a story, a novel or the script of a film, and a question about it. {_SHORT}\n\nStory: {{context}}\n\n"
        f"Now answer the question about the story. {_SHORT}\n\nQuestion: {{input}}\n\nAnswer:"
    ),
    "qasper": (
        f"Here is a scientific article and a question about it. {_ARTICLE}\n\nArticle: {{context}}\n\n"
        f"Now answer the question about the article above. {_ARTICLE}\n\nQuestion: {{input}}\n\nAnswer:"
    ),
    "multifieldqa_en": (
        "Read the text below and give a brief answer.\n\n{context}\n\n"
        "Now answer this question about the text above. Write the answer alone and nothing else.\n\n"
        "Question: {input}\nAnswer:"
    ),
    "hotpotqa": _DOCUMENTS,
    "2wikimqa": _DOCUMENTS,
    "musique": _DOCUMENTS,
    "gov_report": (
        "Here is a report of a government agency. Sum it up on one page.\n\nReport:\n{context}\n\n"
        "Now sum up the report on one page.\n\nSummary:"
    ),
    "qmsum": (
        "Here is the transcript of a meeting and a request, a question or an instruction. Answer it in one or a few "
        "sentences.\n\nTranscript:\n{context}\n\n"
        "Now answer the request about the meeting above in one or a few sentences.\n\nQuery: {input}\nAnswer:"
    ),
    "multi_news": (
        "Here are several articles of the news. Sum up all of them on one page.\n\nNews:\n{context}\n\n"
        "Now sum up all the news on one page.\n\nSummary:"
    ),
    "trec": "Say of which type the last question is. First come questions with their types.\n\n{context}\n{input}",
    "triviaqa": (
        "Answer the question from the passage that is given. Write the answer alone and nothing else. First come some "
        "examples.\n\n{context}\n\n{input}"
    ),
    "samsum": "Sum up the dialogue in a few short sentences. First come some examples.\n\n{context}\n\n{input}",
    "passage_count": (
        "Below are paragraphs of Wikipedia; some of them may be there more than once. Read them with care and find out "
        "how many different paragraphs there are, each counted once.\n\n{context}\n\n"
        "Now give the number of different paragraphs. Write the number alone, such as 1, 2 or 3.\n\n"
        "The final answer is: "
    ),
    "passage_retrieval_en": (
        "Here are 30 paragraphs of Wikipedia and an abstract. Find out of which paragraph it is the abstract.\n\n"
        "{context}\n\nThe abstract:\n\n{input}\n\n"
        'Now give the number of the paragraph. Write it as "Paragraph 1", "Paragraph 2" and so on.\n\nThe answer is: '
    ),
    "lcc": "Complete the code below. \n{context}Next line of code:\n",
    "repobench-p": "Complete the code below. \n{context}{input}Next line of code:\n",
}
