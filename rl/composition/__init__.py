"""Composition of a command line and YAML files to a config of plain dataclasses. OmegaConf nodes stay inside this
package."""
