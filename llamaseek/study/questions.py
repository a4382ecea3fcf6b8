"""The lecture's six class questions, with their answers. `docs/questions.md` has the same text."""

from __future__ import annotations

from dataclasses import dataclass

from llamaseek.errors import unknown_name


@dataclass(frozen=True)
class ClassQuestion:
    """A question with its options; `answers` are the numbers of those that are right."""

    text: str
    options: tuple[str, ...]
    answers: tuple[int, ...]
    why: str
    shown_by: str
    command: str


QUESTIONS: dict[int, ClassQuestion] = {
    0: ClassQuestion(
        "Why not just do a single training instead of multiple trainings for LLMs?",
        (
            "Single training won't work",
            "Multiple trainings use different sources of high quality vs medium quality data",
            "Single training has no foundation to build on",
            "Multiple training breaks down overall objectives into multiple stages",
            "Multiple training is faster",
        ),
        (2, 4),
        "Each stage has its own data and its own objective. A single training does work: at the"
        " size of the study it follows 84% of the instructions and forgets less than three stages"
        " do. A foundation is what a stage builds on, and a single training needs none. At equal"
        " numbers of steps several stages are not faster.",
        "llamaseek.study.stages",
        "llamaseek study stages",
    ),
    2: ClassQuestion(
        "Which of the following statements are true?",
        (
            "BERT training uses the masked language model objective",
            "Llama 3 pre-training uses the causal LM objective",
            "Llama 3 pre-training uses next-token prediction",
            "Llama 3 pre-training uses masked LM",
            "BERT training uses the causal LM objective",
        ),
        (1, 2, 3),
        "A causal language model predicts the next token from those before it: two names of one"
        " objective. BERT predicts hidden tokens from both sides.",
        "llamaseek.train.objectives.next_token and llamaseek.train.objectives.masked",
        "llamaseek pretrain quickstart-llama3 train.objective=masked out=runs/masked",
    ),
    3: ClassQuestion(
        "What is the loss function for SFT?",
        ("Cross-entropy", "Quadratic loss"),
        (1,),
        "SFT predicts the next token like pre-training, with a loss on the answer alone. Squared"
        " error against one-hot targets would learn more slowly: where the right token has a"
        " small probability, its gradient almost vanishes.",
        "llamaseek.train.objectives.next_token.NextToken",
        "llamaseek sft quickstart-sft model.init_from=runs/mine/model out=runs/mine-sft",
    ),
    4: ClassQuestion(
        "If you had to fine-tune an LLM that can detect an emotion from a review, which would you"
        " pick?",
        (
            "Fine-tune an instruct model",
            "Fine-tune the pre-trained model",
            "Fine-tune the SFT model",
        ),
        (1, 2),
        "There are two sides. For 2: the lecture calls SFT the fine-tuning of the pre-trained"
        " model on specific tasks, and with much data the start matters little. For 1: a model"
        " that already reads tasks and answers in a word needs fewer reviews; measured with 256"
        " reviews, the instruct model reaches 79%, the SFT model 72%, the pre-trained one 50%."
        " With 64 reviews or fewer none of them is better than guessing. SmolLM2 135M, fine-tuned"
        " on 120 reviews, is right on 100% of 40 held-out ones from its published instruct model,"
        " and on 92.5% from the same model after SFT on another task (notebook 5 has the"
        " commands).",
        "llamaseek.study.start",
        "llamaseek study start",
    ),
    5: ClassQuestion(
        "Llama 4 is trained on 40T tokens, has a context window of 256k tokens, a tokenizer with a"
        " vocabulary of 108k and an embedding size of 4096. How many classes does the classifier"
        " of the LM head have?",
        ("256k", "40T", "108k", "128k", "4096"),
        (3,),
        "The head gives each token of the vocabulary one logit: it has a row for each. Context,"
        " width and the number of tokens that were read change no number of rows.",
        "llamaseek.models.head.Head",
        "llamaseek herd show llama-3.1-8b",
    ),
    6: ClassQuestion(
        "DeepFetch has 1 trillion parameters. How many H100 GPUs with 80 GB hold the model in"
        " memory?",
        ("25", "50", "75", "100"),
        (1,),
        "10^12 parameters of 2 bytes (bf16) are 2 TB, and 2 TB / 80 GB = 25. With fp8 weights 13"
        " are enough, with cards of 80 GiB 24; training with Adam in mixed precision holds 16"
        " bytes a parameter, 200 GPUs, before activations.",
        "llamaseek.plan",
        "llamaseek plan --params 1e12 --gpu h100-80gb",
    ),
}
"""By the lecture's own numbers; it has no question 1."""


def find_question(number: int) -> ClassQuestion:
    """The question with this number. UserError where there is none."""
    if number not in QUESTIONS:
        raise unknown_name("question", str(number), [str(known) for known in QUESTIONS])
    return QUESTIONS[number]


def markdown() -> str:
    """The page `docs/questions.md`."""
    parts = [
        "# The questions of the lecture",
        "The six class questions with their answers: why, what in the project shows it, and the"
        " command that measures it. `llamaseek questions` prints them; this page is written by"
        " `python -m llamaseek.study.questions`.",
    ]
    for number, question in QUESTIONS.items():
        options = [
            f"{place}. {f'**{text}**' if place in question.answers else text}"
            for place, text in enumerate(question.options, 1)
        ]
        parts += [
            f"## Question {number}",
            question.text,
            "\n".join(options),
            question.why,
            f"Shown by `{question.shown_by}`, measured by `{question.command}`.",
        ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
