"""What Jupyter saves of a notebook that is a stage: its text, so that a run is no change to git and DVC."""

from pathlib import Path
from typing import Any

# What Jupyter itself writes the same on every machine, and what stages are told by.
NOTEBOOK_METADATA = {("kernelspec",), ("language_info", "name")}
CELL_METADATA = {("tags",)}


def save_text_only(model: dict[str, Any], path: str, contents_manager: Any, **_: Any) -> None:
    """A `pre_save_hook` of Jupyter's contents manager: no outputs, counts or times in `notebooks/`.

    Notebooks elsewhere, such as the executed ones in `reports/`, are saved as they are.
    """
    from nbconvert.preprocessors import ClearMetadataPreprocessor, ClearOutputPreprocessor
    from nbformat import from_dict

    folder = Path(contents_manager.root_dir, path.lstrip("/")).resolve().parent
    if model["type"] != "notebook" or folder.name != "notebooks" or not (folder.parent / "dvc.yaml").is_file():
        return
    notebook = from_dict(model["content"])
    for clear in (
        ClearOutputPreprocessor(),
        ClearMetadataPreprocessor(
            preserve_nb_metadata_mask=NOTEBOOK_METADATA, preserve_cell_metadata_mask=CELL_METADATA
        ),
    ):
        notebook, _ = clear.preprocess(notebook, {})
    model["content"] = notebook
