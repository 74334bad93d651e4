"""Everything of PrecScope that touches TensorFlow, Keras or a device: it records, and never presents."""
