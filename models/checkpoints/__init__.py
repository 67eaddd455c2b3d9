"""Reads and writes Hugging Face checkpoint folders and PEFT adapters."""
