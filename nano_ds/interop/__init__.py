"""Other programs' model files, in and out. `docs/model_file.md` specifies Nano's `.bin`."""
