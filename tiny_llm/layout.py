"""Where a checkout keeps the files that its pipeline reads and writes.

Paths are relative to the root of the checkout, where the stages run.
"""

from __future__ import annotations

from pathlib import Path

from tiny_llm.errors import ConfigError

SPLITS = ("train", "valid")
PARAMS_PATH = Path("params.yaml")
CORPUS_DIR = Path("build/corpus")
TOKENIZER_PATH = Path("build/tokenizer.json")
TOKENS_DIR = Path("build/tokens")
ID_COUNTS_PATHS = {split: Path(f"build/id_counts-{split}.npy") for split in SPLITS}
LEAKAGE_PATH = Path("build/leakage.json")
REPORT_PATH = Path("build/report.html")
REPORTS_DIR = Path("reports")

_ROOT = Path(__file__).resolve().parents[1]


def find_checkout() -> Path:
    """Return the root of the checkout that this package was imported from.

    Raises:
        ConfigError: It was imported from an installed wheel.
    """
    if not (_ROOT / "dvc.yaml").is_file():
        raise ConfigError(
            f"tiny_llm is installed in {_ROOT}, outside a checkout, so it has no "
            "pipeline; give the path of a token file, or install a checkout with "
            "`pip install --editable`"
        )
    return _ROOT


def split_path(split: str) -> Path:
    """Return the path at which this checkout's pipeline writes a split's ids.

    Raises:
        ConfigError: Not one of `SPLITS`, or there is no checkout.
    """
    if split not in SPLITS:
        raise ConfigError(f"there is no split {split!r}; give {' or '.join(SPLITS)}")
    return find_checkout() / TOKENS_DIR / f"{split}.bin"
