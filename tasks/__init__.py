"""Data for rank classification, through seqio: the one place that imports seqio and TensorFlow.

=================  ==============================================================================
`prompts`          prompt templates in promptsource's YAML format, rendered with jinja2
`datasets`         the table of datasets: fields, labels, where they lie, templates, shots
`sources`          rows of a dataset, from a folder of JSONL files or from TFDS
`few_shot`         T-Few's draws of training examples
`prompted`         a task's rows under its templates, as text
`tensorflow_data`  seqio and TensorFlow themselves, quiet and off the accelerators *
`converters`       seqio feature converters: answer choices, and encoder-decoder batches *
`registry`         datasets, users' folders and the embedded tasks as seqio tasks and mixtures *
`prepare`          a task -> the plain arrays of `peft_jax.examples` *
`embedded`         the generated tasks that need no download
=================  ==============================================================================

Only the modules marked * import seqio, which takes seconds; importing this package imports nothing.
"""
