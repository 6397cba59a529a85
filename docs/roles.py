"""Griffe extension: turn Sphinx roles in docstrings, such as ``:func:`name```, into links to the API pages."""

import re

import griffe

_ROLE = re.compile(r":(?:func|class|meth|attr|data|mod):`([\w.]+)`")


class Roles(griffe.Extension):
    """Griffe extension that rewrites the docstrings of a package after all its modules are loaded."""

    def on_package(self, *, pkg: griffe.Module, **_: object) -> None:
        """Replace the Sphinx roles in all docstrings of a package by links."""
        self._rewrite(pkg)

    def _rewrite(self, member: griffe.Object) -> None:
        if member.docstring:
            member.docstring.value = _ROLE.sub(lambda role: _reference(member, role[1]), member.docstring.value)
        for child in member.members.values():
            if not child.is_alias:
                self._rewrite(child)


def _reference(member: griffe.Object, name: str) -> str:
    """Return an HTML link that replaces a Sphinx role in a docstring.

    Args:
        member: object that has the docstring.
        name: Python name between the backticks of the role. It is resolved in the scope of ``member``.
    """
    try:
        target = member.resolve(name) if name.partition(".")[0] != member.package.name else name
    except griffe.NameResolutionError:
        target = name
    return f'<autoref identifier="{target}" optional><code>{name}</code></autoref>'
