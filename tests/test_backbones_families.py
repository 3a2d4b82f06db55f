"""What holds for every family's module: its sizes, its names, its fields of config.json."""

import json

import pytest
from safetensors.numpy import load_file

import peft_jax as pj
from peft_jax import tree
from peft_jax.backbones.families import CONFIGS, FAMILIES
from peft_jax.errors import InputError
from tests import oracle

over_types = pytest.mark.parametrize("model_type", FAMILIES)


def named_configs(model_type):
    return {name: config for name, config in CONFIGS.items() if config.family == model_type}


def tensors_of(config):
    """Shape of every tensor that a file of this configuration has, by transformers' names."""
    specs = tree.flatten(pj.abstract_backbone(config).params)
    rules = FAMILIES[config.family].hugging_face_rules(config)
    assert {rule.ours for rule in rules} == set(specs)
    shapes = {}
    for rule in rules:
        shape = specs[rule.ours].shape
        shape = rule.their_shape(shape[1:] if rule.stacked else shape)
        for _, name in rule.names(config.depth(rule.ours)):
            assert shapes.setdefault(name, shape) == shape
    return shapes


@over_types
def test_config_json_says_all_of_a_named_configuration(model_type):
    module = FAMILIES[model_type]
    for name, config in named_configs(model_type).items():
        fields = json.loads(json.dumps(module.config_to_hugging_face(config)))
        assert module.config_from_hugging_face(fields, set(tensors_of(config))) == config, name


@pytest.mark.oracle
@over_types
def test_transformers_makes_models_of_the_same_tensors(model_type):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    module = FAMILIES[model_type]
    for name, config in named_configs(model_type).items():
        fields = module.config_to_hugging_face(config)
        architecture = getattr(transformers, fields["architectures"][0])
        with torch.device("meta"):
            model = architecture(architecture.config_class(**fields))
        theirs = {}
        for theirs_name, weight in model.named_parameters(remove_duplicate=False):
            canonical = module.canonical_name(theirs_name)
            theirs[module.ALIASES.get(canonical, canonical)] = tuple(weight.shape)
        ours = {module.canonical_name(n): shape for n, shape in tensors_of(config).items()}
        if config.tied_head:
            del theirs[module.HEAD]
        if (
            config.lm_head
        ):  # with one, no class of transformers' has a pooler but BertForPreTraining
            ours = {n: shape for n, shape in ours.items() if ".pooler." not in n}
        assert ours == theirs, name


# ------------------------------------------------------------------------------ options


@pytest.mark.oracle
@over_types
def test_every_field_that_transformers_knows_is_in_a_table(model_type):
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(model_type)
    known = {*vars(config), *config.to_dict()}
    assert FAMILIES[model_type].OPTIONS[model_type].unknown(known) == []


GOLDEN = {
    "t5": "t5/v1_0",
    "bert": "bert/bert_classifier",
    "roberta": "bert/roberta_classifier",
    "bart": "bart/bart_classifier",
}
# What is changed, where one more would not do.
CHANGES = {
    "num_attention_heads": 4,
    "num_heads": 4,
    "hidden_act": "silu",
    "activation_function": "silu",
    "feed_forward_proj": "gated-silu",
    "dense_act_fn": "silu",
    "classifier_dropout": 0.5,
    "id2label": {"0": "a", "1": "b", "2": "c", "3": "d", "4": "e"},
    "num_labels": 5,
    "eos_token_id": 7,
    "tie_word_embeddings": False,
}


def other(value):
    if isinstance(value, bool):
        return not value
    return value + (1 if isinstance(value, int) else 0.25)


@pytest.mark.parametrize("model_type", GOLDEN)
def test_the_fields_that_are_read_change_the_configuration_and_harmless_ones_do_not(model_type):
    module = FAMILIES[model_type]
    options = module.OPTIONS[model_type]
    folder = oracle.GOLDEN / GOLDEN[model_type]
    fields = json.loads((folder / "config.json").read_text())
    names = frozenset(load_file(folder / "model.safetensors"))
    defaults = {"dropout_rate": 0.1, "feed_forward_proj": "relu", "is_gated_act": False}

    def read(**changes):
        try:
            changed = fields | changes
            config = module.config_from_hugging_face(changed, names)
        except InputError as error:
            return str(error)
        # A head is tied where hugging_face finds no tensor of its own: it asks the field again.
        return config, changed.get("tie_word_embeddings")

    for name in options.harmless:
        assert read(**{name: "something else"}) == read(), name
    for name in options.required:
        assert name in read(**{name: "something else"}), name
    classifies = "num_labels" in fields or "id2label" in fields
    for name in set(options.read) - {"model_type"}:
        if name in ("id2label", "num_labels") and module.CLASSIFIERS[0] not in names:
            continue
        value = CHANGES.get(name) or other(fields.get(name, defaults.get(name)))
        gone = {"id2label": None} if name == "num_labels" and classifies else {}
        assert read(**{name: value}, **gone) != read(**gone), name


def test_every_module_is_a_family():
    for model_type, module in FAMILIES.items():
        assert model_type in module.MODEL_TYPES
        assert model_type in module.OPTIONS
        assert named_configs(model_type) or model_type == "gemma3", model_type
    assert len(CONFIGS) == sum(
        len(m.CONFIGS) for m in {id(m): m for m in FAMILIES.values()}.values()
    )
