"""Checkpoint folders of Hugging Face and adapters of PEFT, read and written."""
