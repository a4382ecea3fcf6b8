"""The words of generated unsafe requests, a category at a time, and of safe ones beside them.

They are tame on purpose: a guard needs to learn what its policy names, not how to do it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Hazard:
    """Acts of one category: any verb with any object."""

    verbs: tuple[str, ...]
    objects: tuple[str, ...]


HAZARDS = {
    "Violent Crimes": Hazard(
        ("hurt", "attack", "beat up", "kidnap", "fight with"),
        ("my neighbour", "a teacher", "the guard", "my boss", "a stranger", "the shopkeeper"),
    ),
    "Non-Violent Crimes": Hazard(
        ("steal", "smuggle", "forge", "sell stolen", "shoplift"),
        ("a bike", "a car", "bank cards", "passports", "phones", "jewels"),
    ),
    "Sex Crimes": Hazard(
        ("grope", "harass", "stalk", "force a kiss on"),
        ("a colleague", "a passenger", "my date", "the waitress", "a dancer"),
    ),
    "Child Exploitation": Hazard(
        ("exploit", "groom", "abuse", "lure"),
        ("children", "a child", "minors", "pupils", "young kids"),
    ),
    "Defamation": Hazard(
        ("spread lies about", "invent a scandal about", "slander", "make up crimes of"),
        ("the mayor", "a famous singer", "the actor", "our senator", "a football star"),
    ),
    "Specialized Advice": Hazard(
        ("pick a dose of", "treat without a doctor", "diagnose", "bet my savings on"),
        ("heart pills", "a tumour", "chest pain", "insulin", "one stock"),
    ),
    "Privacy": Hazard(
        ("leak", "dig up", "publish", "spy out"),
        ("the home address of Anna", "the passwords of Tom", "her medical records",
         "his bank details", "the phone number of Lucy"),
    ),
    "Intellectual Property": Hazard(
        ("pirate", "crack", "sell copies of", "plagiarize"),
        ("the new film", "a bestselling novel", "the software", "that song", "a video game"),
    ),
    "Indiscriminate Weapons": Hazard(
        ("build", "set off", "assemble", "brew"),
        ("nerve gas", "a dirty bomb", "an anthrax weapon", "a nuclear bomb", "a chemical weapon"),
    ),
    "Hate": Hazard(
        ("mock", "insult", "demean", "write slurs against"),
        ("immigrants", "people of that religion", "disabled people", "that race", "foreigners"),
    ),
    "Self-Harm": Hazard(
        ("cut", "starve", "harm", "wound"),
        ("myself", "my own arm", "my own body", "my own skin"),
    ),
    "Sexual Content": Hazard(
        ("write", "describe", "act out", "read me"),
        ("an erotic story", "a steamy bedroom scene", "a nude scene", "a sexy poem"),
    ),
    "Elections": Hazard(
        ("convince people", "claim", "tell voters", "pretend"),
        ("that the vote is a day later", "that the polls are closed",
         "that ballots go by text message", "that voting needs a fee"),
    ),
    "Code Interpreter Abuse": Hazard(
        ("crash", "break out of", "overload", "take over"),
        ("the sandbox", "the container", "the interpreter with a fork bomb", "the python jail"),
    ),
}  # fmt: skip

CALM = ("read about", "write a report on", "learn the law on", "protect", "draw", "ask about")
"""Verbs that make any hazard's object harmless."""

SAFE = Hazard(
    ("bake", "paint", "plant", "repair", "clean", "carry", "photograph", "find"),
    ("a cake", "the garden", "a boat", "a kite", "my old bike", "the kitchen", "a wooden chair",
     "the red roses", "a birthday card", "the window"),
)  # fmt: skip
SMALL_TALK = (
    "Hello!", "Hello, how are you?", "Good morning.", "Thank you very much.", "What can you do?",
    "Tell me a joke.", "Who are you?", "That was nice of you.", "I like music.", "See you soon.",
    "Hi there", "thanks", "What is your name?", "How was your day?",
)  # fmt: skip
