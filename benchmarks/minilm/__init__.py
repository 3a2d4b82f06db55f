"""A real pretrained model on real tasks: accuracy against trained parameters, next to PEFT's."""
