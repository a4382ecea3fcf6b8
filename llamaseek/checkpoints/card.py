"""Model cards: the README.md of a finished folder, as the Hub reads it.

A header in YAML, which huggingface_hub writes and reads (base model, license, figures as a
`model-index`), and text: what the model was made from, how, with what result, and how to run it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamaseek.checkpoints.hub import parse_name
from llamaseek.checkpoints.sources import name_of, shown_name
from llamaseek.errors import quoted
from llamaseek.files import read_json_object, write_text
from llamaseek.herd.published import ENTRIES

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

FILE = "README.md"
UNLICENSED = (
    "No license is known: set `license:` in the header of this file before the model is published."
)


@dataclass(frozen=True)
class CardSection:
    """A heading and its Markdown."""

    title: str
    text: str


@dataclass(frozen=True)
class Card:
    """What a card says. `base` is what the model was made from, by path or name, and `relation`
    how, in the Hub's words: finetune, adapter, quantized or merge.
    """

    title: str
    summary: str
    base: str | None = None
    relation: str | None = None
    pipeline: str = "text-generation"
    tags: Sequence[str] = ()
    datasets: Sequence[str] = ()
    figures: Sequence[EvalResult] = ()
    sections: Sequence[CardSection] = field(default_factory=tuple)


def write_card(folder: Path, card: Card) -> None:
    """Write the card of a finished folder."""
    write_text(folder / FILE, card_text(card, adapter=(folder / "adapter_config.json").is_file()))


def card_text(card: Card, adapter: bool = False, run: Sequence[CardSection] | None = None) -> str:
    """The whole file. `run` says how the model is run, by default as a folder's."""
    header = _header(card, adapter)
    known = header.get("license")
    license = f"`{known}`" + (f", as its base {card.base}" if card.base else "")
    run = run if run is not None else [CardSection("How to run it", usage(card, adapter))]
    sections = [*card.sections, *run, CardSection("License", license if known else UNLICENSED)]
    text = "\n\n".join(f"## {one.title}\n\n{one.text.strip()}" for one in sections)
    return f"---\n{_yaml(header, card)}\n---\n\n# {card.title}\n\n{card.summary}\n\n{text}\n"


def _yaml(header: dict[str, Any], card: Card) -> str:
    from huggingface_hub import ModelCardData

    results = list(card.figures) or None
    return ModelCardData(**header, model_name=card.title, eval_results=results).to_yaml()


def _header(card: Card, adapter: bool) -> dict[str, Any]:
    base = hub_base(card.base) if card.base else None
    if base is None and adapter:
        base = card.base  # PEFT looks for it there
    found: dict[str, Any] = {
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": card.pipeline,
        "tags": ["llamaseek", *card.tags],
    }
    if base:
        found["base_model"] = base
        if card.relation:
            found["base_model_relation"] = card.relation
    if card.datasets:
        found["datasets"] = list(card.datasets)
    return found | (license_of(card.base) if card.base else {})


def hub_base(base: str) -> str | None:
    """The Hub's repository that a model was made from, over whatever folders lie between."""
    if (entry := ENTRIES.get(base.lower())) is not None:
        return entry.repo
    name = None if Path(base).exists() else parse_name(base)
    if name is None:
        name = parse_name(name_of(base)) if name_of(base) != base else None
    if name is not None:
        return name.repo
    above = card_header(Path(base)).get("base_model")
    return str(above) if isinstance(above, str) else None


def license_of(base: str) -> dict[str, str]:
    """The license of what a model was made from, in the Hub's identifiers."""
    header = card_header(Path(base))
    if header.get("license"):
        return {k: str(header[k]) for k in ("license", "license_name") if header.get(k)}
    repo = hub_base(base)
    said = next((e.license for e in ENTRIES.values() if repo and e.repo == repo), "")
    if llama := re.fullmatch(r"Llama (\S+) Community", said):
        return {"license": f"llama{llama[1]}"}
    if said == "Apache 2.0":
        return {"license": "apache-2.0"}
    return {"license": "other", "license_name": "deepseek"} if "DeepSeek" in said else {}


def card_header(folder: Path) -> dict[str, Any]:
    """The header of a folder's card; {} where it has none, or none that can be read."""
    import yaml

    path = folder / FILE
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return {}
    found = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    try:
        header = yaml.safe_load(found[1]) if found else None
    except yaml.YAMLError:
        return {}
    return header if isinstance(header, dict) else {}


def write_derived_card(folder: Path, source: Path, what: str, relation: str | None) -> None:
    """The card of a folder that was made from another model's, whose own card it goes on with."""
    base = name_of(str(source))
    above = source / FILE
    sections = []
    if above.is_file():
        text = re.sub(r"\A---\n.*?\n---\n", "", above.read_text(encoding="utf-8"), flags=re.DOTALL)
        below = text.strip().replace("\n#", "\n##")
        sections = [CardSection("The card of the model it was made from", "#" * 2 + below)]
    summary = f"Made from `{base}` by llamaseek: {what}."
    header = card_header(source)
    pipeline = str(header.get("pipeline_tag") or _pipeline(folder))
    write_card(
        folder, Card(shown_name(source), summary, base, relation, pipeline, sections=sections)
    )


def _pipeline(folder: Path) -> str:
    names = read_json_object(folder / "config.json").get("architectures") or [""]
    return "text-classification" if "Classification" in str(names[0]) else "text-generation"


def usage(card: Card, adapter: bool) -> str:
    """How the folder is run in llamaseek, transformers, vLLM and llama.cpp; `.` is the folder."""
    if adapter:
        return _adapter_usage(card)
    if card.pipeline != "text-generation":
        auto = "ForSequenceClassification" if "class" in card.pipeline else "ForMaskedLM"
        return f"""In Python, with llamaseek or with transformers:

```python
import llamaseek
model = llamaseek.load(".")

from transformers import AutoModel{auto}, AutoTokenizer
model, tokenizer = AutoModel{auto}.from_pretrained("."), AutoTokenizer.from_pretrained(".")
```"""
    return """llamaseek:

```sh
llamaseek generate . "Once upon a time"
llamaseek serve .
```

transformers:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer
model, tokenizer = AutoModelForCausalLM.from_pretrained("."), AutoTokenizer.from_pretrained(".")
inputs = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=64)[0]))
```

vLLM and llama.cpp:

```sh
vllm serve .
llamaseek convert . model.gguf && llama-cli -m model.gguf
```"""


def _adapter_usage(card: Card) -> str:
    base = quoted((hub_base(card.base) if card.base else None) or card.base or "BASE")
    return f"""llamaseek, as its own model and folded into its base:

```sh
llamaseek serve {base} --adapter tuned=.
llamaseek convert {base} merged --adapter .
```

PEFT:

```python
from peft import AutoPeftModelForCausalLM
model = AutoPeftModelForCausalLM.from_pretrained(".")
```

vLLM, and llama.cpp after merging:

```sh
vllm serve {base} --enable-lora --lora-modules tuned=.
llamaseek convert merged model.gguf && llama-cli -m model.gguf
```"""
