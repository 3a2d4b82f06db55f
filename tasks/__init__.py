"""Data for every kind of model: the one place that imports seqio and TensorFlow.

Rows

=================  ==============================================================================
`datasets`         what a dataset's rows hold, where they lie, its labels, splits and sizes
`sources`          rows of a dataset, from a folder of files or from TFDS
`files`            rows of one file: JSONL, JSON, CSV, TSV, parquet or text
`table_files`      the official files of E2E, WebNLG and DART
`documents`        documents and sentences of any folder of text
`row_report`       what happens to rows that cannot be used, and what did
`held_out`         which rows of train stand for validation where it has no file
`few_shot`         draws and folds
`draws`            which rows of a split a task has
=================  ==============================================================================

Tasks

=================  ==============================================================================
`catalogue`        all tasks and mixtures by name, from the modules that define them
`prompts`          formats of text: promptsource's templates, and Python functions
`prompted`         a task's rows in its formats, as text
`superglue`        SuperGLUE as T5 asks it; `glue` and `reading` (SQuAD, MRQA) likewise, on
                   `t5_formats`; `transfers` between domains
`t0_table`         the datasets of T0's mixtures and of T-Few's suite; `p3` makes their tasks
`classification`   banking77, ADE corpus, AG News
`raft`             the eleven tasks of RAFT, and its submission file
`table_to_text`    E2E, WebNLG and DART; `summarization`, `generation` likewise
`pretext`          PPT's pretext tasks of any text; `ppt` its few-shot tasks
`denoising`        span corruption and prefix LM on arrays; `pretraining` * in seqio
`underspecified`   demonstrations that leave two readings open, on `text_features` and
                   `feature_pairs`
`own_data`         somebody's own files and a task.yaml, on `own_settings`, `own_prompt` and
                   `own_folder`
`embedded`         the generated tasks that need no download
=================  ==============================================================================

For models

=================  ==============================================================================
`options`          what every way of preparing a task can be asked for
`prepare`          a task -> the plain arrays of `peft_jax.examples` *
`texts`            a task whose answers are written -> `peft_jax.text_examples`
`encoders`         a task's classes for a head, its answers' words for a masked-LM's mask
`tensorflow_data`  seqio and TensorFlow themselves, quiet and off the accelerators *
`vocabularies`     any tokenizer of a Hugging Face folder as a seqio vocabulary *
`registry`         tasks and mixtures of the catalogue as seqio's *
`converters`       seqio feature converters: answer choices, text to text, decoders' sequences *
`seqio_metrics`    the metrics of `peft_jax.metrics` as seqio's *
`cache`            seqio's cache of tokens, without Apache Beam *
=================  ==============================================================================

Only the modules marked * import seqio, which takes seconds; importing this package imports nothing.
"""
