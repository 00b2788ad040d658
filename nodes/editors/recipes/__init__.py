"""How the native image editors are run: one file per family.

registry   the families by the host's class of MODEL, and what is refused
base       what a recipe says
text       how instructions and the images beside them are encoded
"""
