"""Data for every kind of model: the one place that imports seqio and TensorFlow.

=================  ==============================================================================
`prompts`          prompt templates in promptsource's YAML format, rendered with jinja2
`datasets`         datasets: fields, labels, where they lie, templates, shots
`catalogue`        all tasks and mixtures by name, from the modules that define them
`sources`          rows of a dataset, from a folder of files or from TFDS
`files`            rows of one file: JSONL, JSON, CSV, TSV, parquet or text
`row_report`       what happens to rows that cannot be used, and what did
`held_out`         which rows of train stand for validation where it has no file
`own_data`         somebody's own files and a task.yaml -> a task
`own_settings`     the lines of a task.yaml and their checks
`own_prompt`       the prompts of a task.yaml
`own_folder`       what a folder of files without a task.yaml says about itself
`few_shot`         T-Few's draws of training examples
`prompted`         a task's rows under its templates, as text
`tensorflow_data`  seqio and TensorFlow themselves, quiet and off the accelerators *
`vocabularies`     any tokenizer of a Hugging Face folder as a seqio vocabulary *
`converters`       seqio feature converters: answer choices, text to text, decoders' sequences *
`registry`         datasets, users' folders and the embedded tasks as seqio tasks and mixtures *
`texts`            a task whose answers are written -> `peft_jax.text_examples`
`encoders`         a task's classes for a head, its answers' words for a masked-LM's mask
`options`          what every way of preparing a task can be asked for
`prepare`          a task -> the plain arrays of `peft_jax.examples` *
`embedded`         the generated tasks that need no download
=================  ==============================================================================

Only the modules marked * import seqio, which takes seconds; importing this package imports nothing.
"""
