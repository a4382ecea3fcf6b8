"""`average`: the mean of several checkpoints, as a model folder."""

from __future__ import annotations

from pathlib import Path

import typer

from llamaseek.errors import UserError


def average(
    target: Path = typer.Argument(help="The folder to write."),
    models: list[Path] = typer.Argument(help="Two or more folders of the same model."),
) -> None:
    """Average the weights of checkpoints of one model, as Llama 3's stages are."""
    if target.exists():
        raise UserError(f"{target}: is there already; give a new folder")
    from llamaseek.models.average import average_models
    from llamaseek.text.tokenizer import Tokenizer
    from llamaseek.train.run_folder import RunFolder

    tokenizer = Tokenizer.load(models[0])
    generation = models[0] / "generation_config.json"

    def write(folder: Path) -> None:
        average_models(models, folder)
        tokenizer.save(folder)
        if generation.is_file():
            (folder / generation.name).write_text(generation.read_text())

    RunFolder(target.parent).save(target, write)
    print(f"model   {target}   (mean of {len(models)})")
