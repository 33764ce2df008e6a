"""The Flax model: layers, attention, the mixture of transformers, the picture codecs, the whole interleaved model."""
