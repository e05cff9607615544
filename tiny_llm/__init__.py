"""tiny_llm: verified tokens for training small language models.

In the order you would learn them: `corpus` cuts text into documents, `tokenize`
learns merges and turns text into ids, `tokens` is the file format, `encoding`
turns a text file into a token file, and `batching` serves batches to a trainer.
Importing a module has no effect, and only `batching` imports torch.
"""

__version__ = "0.1.0"
