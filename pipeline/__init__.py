"""Stages of the pipeline: files in, files out, no algorithms.

dvc.yaml wires them together. Each runs as `python -m pipeline STAGE` from the root of
the repository, reads params.yaml, and leaves its outputs in build/ and reports/:

    fetch           bring train.txt and valid.txt to build/corpus
    bpe             learn build/tokenizer.json from the first documents of train
    encode SPLIT    encode train or valid into build/tokens
    leakage         say what of valid also occurs in train
    report          show what the run made on one page, build/report.html

`python -m pipeline STAGE --help` says more about one of them.
"""
