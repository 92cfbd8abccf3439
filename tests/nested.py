"""Change keys of a nested config by their names alone."""

from dataclasses import fields, is_dataclass, replace


def change(config, **changes):
    """Return a frozen config with fields replaced, its own or those of one of its sections.

    A section of that name itself is replaced whole.
    """
    own = {field.name for field in fields(config)}
    sections = {name: value for name, value in vars(config).items() if is_dataclass(value)}
    for key in changes.keys() - own:
        (name,) = [name for name, value in sections.items() if hasattr(value, key)]
        inner = changes.get(name, sections[name])
        changes[name] = change(inner, **{key: changes.pop(key)})
    return replace(config, **changes)
