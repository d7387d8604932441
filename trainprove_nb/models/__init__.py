"Text-to-image pipelines and image classifiers: loading, sampling, training."


def __getattr__(name):
    "What diffusers looks for here, since the bundled models' `model_index.json` say `trainprove_nb.models`."
    if name in ("PatchVAE", "ModelMixin"):
        from . import mini

        return getattr(mini, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
