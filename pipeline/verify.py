"""Check every byte of the pipeline's token files against their manifests.

Not a stage of dvc.yaml: run it when you suspect a disk or a copy. It names damaged
ranges and exits with status 4.
"""

from __future__ import annotations

from tiny_llm.layout import SPLITS, TOKENIZER_PATH, TOKENS_DIR
from tiny_llm.tokenize import BPETokenizer
from tiny_llm.verify import verify


def run() -> str:
    """Verify both splits, and that build/tokenizer.json made their ids."""
    sha256 = BPETokenizer.load(TOKENIZER_PATH).sha256
    manifests = {split: verify(TOKENS_DIR / f"{split}.bin", sha256) for split in SPLITS}
    return "verified " + ", ".join(
        f"{split}: {manifest.num_tokens:,} ids, sha256 {manifest.sha256[:12]}..."
        for split, manifest in manifests.items()
    )
