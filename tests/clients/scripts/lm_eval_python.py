"""lm-eval's own classes for OpenAI's APIs, with the server's tokenizer."""

from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI
from steps import MODEL, QUESTION, STORY, URL, holds, same, step


def instances(kind, *arguments):
    return [Instance(kind, {}, each, n) for n, each in enumerate(arguments)]


def completions():
    return LocalCompletionsAPI(
        model=MODEL, base_url=f"{URL}/v1/completions", tokenizer_backend="remote", max_length=512
    )


def chat():
    return LocalChatCompletion(model=MODEL, base_url=f"{URL}/v1/chat/completions")


@step
def loglikelihood():
    asked = instances("loglikelihood", ("The red", " fox"), ("The red", " bird"))
    found = completions().loglikelihood(asked)
    assert all(score < 0 for score, _ in found)
    return found


@step
def generate_until():
    asked = instances("generate_until", ("The red fox", {"until": ["."], "max_gen_toks": 20}))
    return completions().generate_until(asked)


@step
def chat_generate_until():
    model = chat()
    talk = model.apply_chat_template([{"role": "user", "content": "Hello"}])
    asked = instances("generate_until", (talk, {"until": ["\n\n"], "max_gen_toks": 200}))
    return same(model.generate_until(asked), [STORY])


@step
def real_loglikelihood():
    asked = instances("loglikelihood", (QUESTION, " Paris"), (QUESTION, " xylophone"))
    (right, _), (wrong, _) = completions().loglikelihood(asked)
    assert right > wrong
    return right, wrong


@step
def real_chat():
    model = chat()
    talk = model.apply_chat_template([{"role": "user", "content": QUESTION}])
    asked = instances("generate_until", (talk, {"until": ["\n\n"], "max_gen_toks": 30}))
    return holds(model.generate_until(asked)[0], "Paris")
