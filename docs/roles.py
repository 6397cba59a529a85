"""Links in docstrings: ``:func:`name```, as Sphinx knows them, becomes a reference to the API's page."""

import re

import griffe

_ROLE = re.compile(r":(?:func|class|meth|attr|data|mod):`([\w.]+)`")


class Roles(griffe.Extension):
    """Rewrites the docstrings of a package once all of it is known."""

    def on_package(self, *, pkg: griffe.Module, **_: object) -> None:
        """Rewrite all docstrings of a package."""
        self._rewrite(pkg)

    def _rewrite(self, found: griffe.Object) -> None:
        if found.docstring:
            found.docstring.value = _ROLE.sub(lambda role: _reference(found, role[1]), found.docstring.value)
        for member in found.members.values():
            if not member.is_alias:
                self._rewrite(member)


def _reference(found: griffe.Object, name: str) -> str:
    """A reference to what a name means where it is written."""
    try:
        target = found.resolve(name) if name.partition(".")[0] != found.package.name else name
    except griffe.NameResolutionError:
        target = name
    return f'<autoref identifier="{target}" optional><code>{name}</code></autoref>'
