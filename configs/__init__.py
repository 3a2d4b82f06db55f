"""Presets: plain Python files with a function ``config()``; `peft-jax train --config NAME`."""
