__version__ = "0.1.0"

import os

for library in ("TRANSFORMERS", "DIFFUSERS"): os.environ.setdefault(f"{library}_VERBOSITY", "error")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
