"""From a command line and YAML files to a config of plain dataclasses. Nothing outside this package sees OmegaConf nodes."""
