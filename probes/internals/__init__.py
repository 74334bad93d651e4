"""The one door to what Keras and TensorFlow do not promise to keep; a module for each subject.

That is private attributes, `keras.src`, `tensorflow.python`, and behaviour that is documented nowhere. Everything here
was read in Keras 3.15 and TensorFlow 2.21; when a new release breaks PrecScope, it should break here. Nothing else in
PrecScope reaches behind the public API: `tests/test_layout.py` holds that.
"""
