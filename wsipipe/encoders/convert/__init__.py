"""Conversions that are run once, by hand, and never by a run on slides.

    python -m wsipipe.encoders.convert pickled encoder.pt squeezer.pt OUT.safetensors
    python -m wsipipe.encoders.convert remedis SAVED_MODEL_FOLDER OUT.safetensors

`pickled`: files that hold whole Python objects (Tissue Concepts, DINO training checkpoints). The
tensors are taken out by a reader that knows tensors and plain containers only: every other class is
replaced by an empty shell, so nothing of the file is run.
`remedis`: a TensorFlow SavedModel; TensorFlow is needed only for this.
"""
